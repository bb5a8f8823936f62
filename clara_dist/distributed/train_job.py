"""Training on a Ray cluster: one worker group of Ray Train for all stages of a run.

The stages, their data order and their checkpoints are those of `clara_dist.training`; Ray starts the workers, joins
them in a process group (gloo, or NCCL with GPUs) and starts them again when one dies.
"""

from __future__ import annotations

import math
import os
import textwrap
import time
from tempfile import TemporaryDirectory
from typing import Any

import ray.train
from ray.exceptions import RayError, RayTaskError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from clara_dist.config import ClaraConfig, StageConfig, TrainConfig
from clara_dist.distributed.paths import absolute, absolute_output
from clara_dist.distributed.resources import (
    holders,
    is_local,
    placement_groups,
    remove_placement_groups,
    require_room,
    shortage,
)
from clara_dist.distributed.search_actors import n_actors, searching
from clara_dist.distributed.session import cluster_has_gpus, connect
from clara_dist.distributed.stopping import stoppable
from clara_dist.distributed.visibility import require_visible
from clara_dist.errors import ClaraError, ClusterError, EchoedError, StorageError
from clara_dist.store.storage import is_url
from clara_dist.training.data import prepare_run
from clara_dist.training.progress import ConsoleProgress, OnProgress, Progress
from clara_dist.training.run_directory import RunDirectory

_POLL_S, _REMOTE_POLL_S = 0.25, 3.0
_WAIT_NOTICE_S = 15.0
_ABORT_S = 30.0
_ELASTIC_PLACEMENT_S = 30.0  # Ray takes about 20 s to see that a node is gone
# Nothing is added to a local Ray: who waits there waits for another job. A cluster may have to buy nodes.
_START_TIMEOUT_S = {"local": 300.0, "cluster": 3600.0}


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    address: str | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, str]:
    """Run all stages of a training run.

    Args:
        config: The run. Relative paths are relative to this process.
        resume: Go on where ``run_dir`` stopped.
        address: The Ray cluster, as `connect` takes it.
        on_progress: Called for every event of the run; None prints lines. What it raises ends the run, as Ctrl-C does.

    Returns:
        Model directory of each stage, by stage key.

    Raises:
        TrainingError: As `clara_dist.training.loop.run`, or ``run_dir`` holds a run and ``resume`` was not asked for.
        CheckpointError: What is to be resumed is damaged, or belongs to other data or settings.
        DataError: A row is bad, or does not fit (`clara_dist.training.data.prepare_run`); nothing was started.
        StorageError: A bucket could not be read or written, more often than ``max_failures``.
        ClusterError: A local Ray has no room for the workers, they did not start within ``start_timeout_s``, a node
            does not see the run's files, or workers failed more often than ``max_failures``.
    """
    config = absolute_paths(config)
    report = on_progress or ConsoleProgress()
    directory = RunDirectory(config.run_dir)
    directory.require_free(resume=resume)
    prepare_run(config, lambda text: report(Progress(text)))  # a bad row is told before anything starts
    directory.begin(config, resume=resume)
    report(Progress("connecting to Ray"))
    # A local Ray gets as many CPUs as the run asks for: on fewer cores it is slower, but it does not wait for ever.
    n_cpus = max(os.cpu_count() or 1, math.ceil(local_cpus(config)))
    going_on = f"stopped; {config.run_dir} has the last checkpoint: the same command with --resume goes on from there"
    with connect(address, num_cpus=n_cpus), stoppable(going_on):
        require_visible(_inputs(config), config.run_dir)
        use_gpu = cluster_has_gpus() if config.use_gpu is None else config.use_gpu
        config = config.model_copy(update={"use_gpu": use_gpu})
        require_room(_resources(config), config.workers.least, f"{config.workers.least} training workers")
        if n_actors(config):
            who = f"{config.workers.least} training workers and {n_actors(config)} search actors"
            require_room({"CPU": local_cpus(config)}, 1, who)
        for failures in range(config.max_failures + 1):
            outcome = _attempt(config, report)
            if isinstance(outcome, dict):
                return outcome
            _raise_own(outcome, last=failures == config.max_failures)
            if failures == config.max_failures:
                raise ClusterError(
                    f"the workers failed {failures + 1} times",
                    got=_reason(outcome),
                    hint="their logs are in Ray's session directory; resume goes on from the last checkpoint",
                ) from outcome
            text = f"a worker failed ({_reason(outcome)}); starting again from the last checkpoint"
            report(Progress(f"{text}, attempt {failures + 2} of {config.max_failures + 1}"))
    raise AssertionError("unreachable: the last attempt returns or raises")


def run_worker(start: dict[str, Any]) -> dict[str, str]:
    """What each worker runs. The driver has claimed the run directory, so every start is a resumption."""
    from clara_dist.training.loop import run

    config = TrainConfig.model_validate(start["config"])
    return run(config, resume=True, searchers=start["searchers"], data_is_prepared=True)


def local_cpus(config: TrainConfig) -> float:
    """CPUs that a local Ray needs for the workers and search actors of a run."""
    return config.workers.least * config.cpus_per_worker + n_actors(config) * config.cpus_per_search_actor


def absolute_paths(config: TrainConfig) -> TrainConfig:
    """The configuration with local paths made absolute: workers have working directories of their own."""
    stages = tuple(_absolute_stage(stage) for stage in config.stages)
    model = config.model
    if isinstance(model, ClaraConfig):
        # The base that a stage of this run makes does not exist yet; any other name that is no directory is a hub id.
        if os.path.isdir(model.base_model) or any(stage.stage == "base" for stage in config.stages):
            model = model.model_copy(update={"base_model": os.path.abspath(model.base_model)})
    elif os.path.isdir(model):
        model = os.path.abspath(model)
    return config.model_copy(update={"run_dir": absolute_output(config.run_dir), "stages": stages, "model": model})


def _absolute_stage(stage: StageConfig) -> StageConfig:
    paths = {name: getattr(stage, name) for name in ("data", "base_dir", "store")}
    update: dict[str, Any] = {name: absolute(path) for name, path in paths.items() if path is not None}
    if stage.output is not None:
        update["output"] = absolute_output(stage.output)
    if stage.evaluation is not None:
        update["evaluation"] = stage.evaluation.model_copy(update={"data": absolute(stage.evaluation.data)})
    return stage.model_copy(update=update)


def _inputs(config: TrainConfig) -> list[str]:
    """Paths and URLs that workers read; what stages of this run make is not there yet.

    The examples are in ``run_dir``.
    """
    paths = [path for stage in config.stages for path in (stage.base_dir, stage.store)]
    model = config.model.base_model if isinstance(config.model, ClaraConfig) else config.model
    paths.append(model if os.path.isdir(model) or is_url(model) else None)
    return [path for path in paths if path is not None]


def _resources(config: TrainConfig) -> dict[str, float]:
    """Of each worker."""
    return {"CPU": config.cpus_per_worker} | ({"GPU": 1} if config.use_gpu else {})


def _attempt(config: TrainConfig, report: OnProgress) -> dict[str, str] | Exception:
    """One worker group from its start to its end: the outputs, or how it failed.

    Ray Train's controller is owned by an actor of ours. When this call is left, by whatever exception, the actor is
    killed, and Ray ends the actors that it owned: controller and workers. A controller that a driver had started would
    live on, as long as anything refers to it, and keep its CPUs and GPUs. A task would do but for `ray.cancel`: where
    it meets the task's own end, Ray 2.60 aborts the driver ("Tried to complete task that was not pending").
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    patience_s = config.start_timeout_s or _START_TIMEOUT_S["local" if is_local() else "cluster"]
    follower = _Follower(config, patience_s, report)
    others = placement_groups()
    owner = ray.remote(num_cpus=0)(_Fit).options(scheduling_strategy=here).remote()
    fit = owner.run.remote(config, patience_s)
    try:
        while not ray.wait([fit], timeout=_REMOTE_POLL_S if is_url(config.run_dir) else _POLL_S)[0]:
            follower.look()
        follower.report_new()
        return ray.get(fit)
    except RayError as error:
        return error
    finally:
        ray.kill(owner)
        ray.wait([fit], timeout=_ABORT_S)
        remove_placement_groups(keep=others)


class _Fit:
    """Runs Ray Train to its end. An actor, so that everything of the run ends with its process."""

    def run(self, config: TrainConfig, patience_s: float) -> dict[str, str] | ray.train.TrainingFailedError:
        # The driver gives up sooner, and knows better what to say. But elastic workers that were counted before a
        # node's loss was noticed will never be placed: that attempt is over soon, and the next one counts again.
        elastic = config.workers.least < config.workers.most
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(_ELASTIC_PLACEMENT_S if elastic else 2 * patience_s)
        keys = RunDirectory.stage_keys(config)
        with TemporaryDirectory(prefix="clara-ray-") as scratch, searching(config, keys) as searchers:
            return _ray_train(config, searchers, scratch)


def _ray_train(
    config: TrainConfig, searchers: dict[str, Any], scratch: str
) -> dict[str, str] | ray.train.TrainingFailedError:
    least, most = config.workers.least, config.workers.most
    trainer = TorchTrainer(
        run_worker,
        train_loop_config={"config": config.model_dump(mode="json"), "searchers": searchers},
        torch_config=TorchConfig(backend="nccl" if config.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=most if least == most else (least, most),
            use_gpu=bool(config.use_gpu),
            resources_per_worker=_resources(config),
        ),
        # Ray would retry a worker's error, whatever it is; a configuration that cannot work is not worth a retry. And
        # a worker that dies while the group starts leaves a placement group behind, for which Ray's own retry waits.
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=scratch,  # Ray Train wants a place; checkpoints are ours, and it is told of none
            failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=0),
        ),
    )
    try:
        return dict(trainer.fit().return_value)
    except ray.train.TrainingFailedError as error:
        return error


def _raise_own(error: Exception, *, last: bool) -> None:
    """Raise the worker's own `ClaraError`, if there is one: it says what is wrong, and trying again would not help.

    Unless it may: a lost search actor, an object store that did not answer, or the mere echo of an error that did not
    arrive. Such an error is raised when it is the ``last`` attempt's.
    """
    failures = getattr(error, "worker_failures", {}) or {"start": error}
    # Ray wraps what a worker or a task raised, to keep its traceback.
    causes = [f.cause if isinstance(f, RayTaskError) else getattr(f, "_base_exc", f) for f in failures.values()]
    own = [cause for cause in causes if isinstance(cause, ClaraError)]
    for cause in sorted(own, key=lambda cause: isinstance(cause, EchoedError)):
        if last or not isinstance(cause, (StorageError, ClusterError, EchoedError)):
            raise cause from None
        return


def _reason(error: Exception) -> str:
    """One short line a failed worker; the whole story is in the chained exception."""
    failures = getattr(error, "worker_failures", {}) or {"controller": error}
    lines = []
    for rank, failure in failures.items():
        text = [line.strip() for line in str(failure).splitlines() if line.strip()]
        lines.append(f"worker {rank}: {textwrap.shorten(text[-1] if text else type(failure).__name__, 160)}")
    return "; ".join(lines)


class _Follower:
    """Reports the run's log as it grows, from where it ends now; and, until it does, what is being waited for.

    Args:
        config: The run.
        patience_s: How long the workers may take to say their first word.
        report: Gets the events.
    """

    def __init__(self, config: TrainConfig, patience_s: float, report: OnProgress) -> None:
        self._config = config
        self._report = report
        self._directory = RunDirectory(config.run_dir)
        self._position = self._directory.log_bytes()
        self._patience_s = patience_s
        self._heard = False
        self._others = placement_groups()
        self._started = time.monotonic()
        self._notice_s = _WAIT_NOTICE_S
        self._awaited = f"{config.workers} training worker{'s' if config.workers.most > 1 else ''}"
        if n_actors(config):
            self._awaited += f" and {n_actors(config)} search actors"
        report(Progress(f"waiting for {self._awaited} to start"))

    def look(self) -> None:
        """Report what is new, or from time to time that there is nothing yet.

        Raises:
            ClusterError: The workers have had time enough to start.
        """
        self.report_new()
        waited_s = time.monotonic() - self._started
        if self._heard or waited_s < min(self._notice_s, self._patience_s):
            return
        why = self._why()
        if waited_s >= self._patience_s:
            raise ClusterError(
                f"{self._awaited} did not start within {self._patience_s:g} s",
                got=why,
                hint="end what holds the resources, ask for fewer, or wait longer with start_timeout_s; resume goes on "
                "from the last checkpoint",
            )
        self._report(Progress(f"still waiting for {self._awaited} after {waited_s:.0f} s: {why}"))
        self._notice_s += _WAIT_NOTICE_S

    def report_new(self) -> None:
        """Report the lines that were added to the log."""
        data = self._directory.read_log(self._position)
        end = data.rfind(b"\n") + 1  # a line that is being written waits
        self._position += end
        for line in data[:end].decode("utf-8").splitlines():
            self._heard = True
            self._report(Progress.from_json(line))

    def _why(self) -> str:
        each, count = _resources(self._config), self._config.workers.least
        lacking = shortage(each, count)
        if lacking is not None:
            return f"nodes must be added, for {lacking}" if not is_local() else lacking
        # A group of our own that is there holds what the workers need.
        placed = any(s == "CREATED" for key, s in placement_groups().items() if key not in self._others)
        return (None if placed else holders(each, count)) or "each needs a process, and its imports"
