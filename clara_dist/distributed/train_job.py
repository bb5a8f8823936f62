"""Training on a Ray cluster: one worker group of Ray Train for all stages of a run.

The stages, their data order and their checkpoints are those of `clara_dist.training`; Ray starts the workers, joins
them in a process group (gloo, or NCCL with GPUs) and starts them again when one dies.
"""

from __future__ import annotations

import math
import os
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from clara_dist.config import ClaraConfig, StageConfig, TrainConfig
from clara_dist.distributed.paths import absolute
from clara_dist.distributed.resources import require_room, shortage
from clara_dist.distributed.session import cluster_has_gpus, connect
from clara_dist.distributed.visibility import require_visible
from clara_dist.errors import ClaraError, ClusterError
from clara_dist.training.progress import LOG_FILE, ConsoleProgress, OnProgress, Progress
from clara_dist.training.run_directory import RunDirectory

ResultT = TypeVar("ResultT")

_POLL_S = 0.25
_WAIT_NOTICE_S = 15.0


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
        on_progress: Called for every event of the run; None prints lines.

    Returns:
        Model directory of each stage, by stage key.

    Raises:
        TrainingError: As `clara_dist.training.loop.run`, or ``run_dir`` holds a run and ``resume`` was not asked for.
        CheckpointError: What is to be resumed is damaged, or belongs to other data or settings.
        ClusterError: A local Ray has no room for the workers, a node does not see the run's files, or workers failed
            more often than ``max_failures``.
    """
    config = absolute_paths(config)
    report = on_progress or ConsoleProgress()
    RunDirectory(config.run_dir).begin(config, resume=resume)
    report(Progress("connecting to Ray"))
    # A local Ray gets as many CPUs as the run asks for: on fewer cores it is slower, but it does not wait for ever.
    n_cpus = max(os.cpu_count() or 1, math.ceil(config.workers * config.cpus_per_worker))
    with connect(address, num_cpus=n_cpus):
        require_visible(_inputs(config), config.run_dir)
        use_gpu = cluster_has_gpus() if config.use_gpu is None else config.use_gpu
        config = config.model_copy(update={"use_gpu": use_gpu})
        require_room(_resources(config), config.workers, f"{config.workers} training workers")
        for failures in range(config.max_failures + 1):
            try:
                with _following(config, report):
                    return _fit(config)
            except ray.train.TrainingFailedError as error:
                _raise_own(error)
                if failures == config.max_failures:
                    raise ClusterError(
                        f"the workers failed {failures + 1} times",
                        got=_reason(error),
                        hint="their logs are in Ray's session directory; resume goes on from the last checkpoint",
                    ) from error
                text = f"a worker failed ({_reason(error)}); starting again from the last checkpoint"
                report(Progress(f"{text}, attempt {failures + 2} of {config.max_failures + 1}"))
    raise AssertionError("unreachable: the last attempt returns or raises")


def run_worker(settings: dict[str, Any]) -> dict[str, str]:
    """What each worker runs. The driver has claimed the run directory, so every start is a resumption."""
    from clara_dist.training.loop import run

    return run(TrainConfig.model_validate(settings), resume=True)


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
    run_dir = os.path.abspath(config.run_dir)
    return config.model_copy(update={"run_dir": run_dir, "stages": stages, "model": model})


def _absolute_stage(stage: StageConfig) -> StageConfig:
    paths = {name: getattr(stage, name) for name in ("data", "base_dir", "output", "store")}
    return stage.model_copy(update={name: absolute(path) for name, path in paths.items() if path is not None})


def _inputs(config: TrainConfig) -> list[str]:
    """Paths and URLs that workers read; what stages of this run make is not there yet."""
    paths = [path for stage in config.stages for path in (stage.data, stage.base_dir, stage.store)]
    model = config.model.base_model if isinstance(config.model, ClaraConfig) else config.model
    paths.append(model if os.path.isdir(model) else None)
    return [path for path in paths if path is not None]


def _resources(config: TrainConfig) -> dict[str, float]:
    """Of each worker."""
    return {"CPU": config.cpus_per_worker} | ({"GPU": 1} if config.use_gpu else {})


def _fit(config: TrainConfig) -> dict[str, str]:
    trainer = TorchTrainer(
        run_worker,
        train_loop_config=config.model_dump(mode="json"),
        torch_config=TorchConfig(backend="nccl" if config.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.workers,
            use_gpu=bool(config.use_gpu),
            resources_per_worker=_resources(config),
        ),
        # Ray would retry a worker's error, whatever it is; a configuration that cannot work is not worth a retry.
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=config.run_dir,
            failure_config=ray.train.FailureConfig(max_failures=0),
        ),
    )
    return dict(_outside_main_thread(trainer.fit).return_value)


def _outside_main_thread(work: Callable[[], ResultT]) -> ResultT:
    """Run ``work`` in a thread of its own, and wait.

    In the main thread Ray Train takes over SIGINT, for good: Ctrl-C would end neither training nor what comes after.
    """
    future: Future[ResultT] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="ray-train", daemon=True).start()
    return future.result()


def _raise_own(error: ray.train.TrainingFailedError) -> None:
    """Raise the worker's own `ClaraError`, if there is one: it says what is wrong, and trying again would not help."""
    for failure in getattr(error, "worker_failures", {}).values():
        # Ray wraps what a worker raised, to keep its traceback.
        cause = getattr(failure, "_base_exc", failure)
        if isinstance(cause, ClaraError):
            raise cause from None


def _reason(error: ray.train.TrainingFailedError) -> str:
    """One short line a failed worker; the whole story is in the chained exception."""
    failures = getattr(error, "worker_failures", {}) or {"controller": error}
    lines = []
    for rank, failure in failures.items():
        text = [line.strip() for line in str(failure).splitlines() if line.strip()]
        lines.append(f"worker {rank}: {textwrap.shorten(text[-1] if text else type(failure).__name__, 160)}")
    return "; ".join(lines)


@contextmanager
def _following(config: TrainConfig, report: OnProgress) -> Iterator[None]:
    """Report the run's log as it grows, from where it ends now; and, until it does, what is being waited for."""
    log = Path(config.run_dir) / LOG_FILE
    start = log.stat().st_size if log.exists() else 0
    stopped = threading.Event()
    thread = threading.Thread(target=_follow, args=(config, log, start, stopped, report), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _follow(config: TrainConfig, log: Path, position: int, stopped: threading.Event, report: OnProgress) -> None:
    awaited = f"{config.workers} training worker{'s' if config.workers > 1 else ''}"
    report(Progress(f"waiting for {awaited} to start"))
    waited_s, notice_s, heard = 0.0, _WAIT_NOTICE_S, False
    while True:
        last_round = stopped.wait(_POLL_S)
        lines, position = _new_lines(log, position)
        for line in lines:
            heard = True
            report(Progress.from_json(line))
        if last_round:
            return
        waited_s += _POLL_S
        if not heard and waited_s >= notice_s:
            lacking = shortage(_resources(config), config.workers)
            why = f"nodes must be added, for {lacking}" if lacking else "each needs a process, and its imports"
            report(Progress(f"still waiting for {awaited} after {waited_s:.0f} s: {why}"))
            notice_s += _WAIT_NOTICE_S


def _new_lines(log: Path, position: int) -> tuple[list[str], int]:
    """Complete lines behind ``position``, and the position behind them; a line that is being written waits."""
    if not log.exists():
        return [], position
    with open(log, "rb") as file:
        file.seek(position)
        data = file.read()
    end = data.rfind(b"\n") + 1
    return data[:end].decode("utf-8").splitlines(), position + end
