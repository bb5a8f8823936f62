"""A plain callable class over many inputs: serially, or in a Ray Data actor pool."""

from __future__ import annotations

import logging
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import ray
from ray.util.annotations import RayDeprecationWarning

from clara_dist.distributed.stall import StallWatch
from clara_dist.distributed.stopping import Stop
from clara_dist.errors import ClaraError, ClusterError

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")

logger = logging.getLogger(__name__)

_RETRIES = 2  # of a task whose actor was lost, within a round
_INIT_DEATHS = 2  # of actors that died while they started until their restarts were used up, in a row
_HOPELESS = 8  # failures per actor of a round that finishes nothing
_SHOWN = 5


class Mapper(Protocol):
    """Runs ``worker(**arguments)`` on every task and yields ``(index of the task, result)`` as they are finished."""

    def __call__(
        self, worker: Callable[..., Callable[[TaskT], ResultT]], arguments: Mapping[str, Any], tasks: Sequence[TaskT]
    ) -> Iterator[tuple[int, ResultT]]: ...


def map_serially(
    worker: Callable[..., Callable[[TaskT], ResultT]], arguments: Mapping[str, Any], tasks: Sequence[TaskT]
) -> Iterator[tuple[int, ResultT]]:
    """The serial `Mapper`: one instance in this process."""
    instance = worker(**arguments)
    for index, task in enumerate(tasks):
        yield index, instance(task)


@dataclass(frozen=True)
class ActorPool:
    """The `Mapper` on Ray Data: a pool of actors, one task per block, so that one task is what a failure costs.

    Within a round, which is one execution of Ray Data, a lost actor is replaced and its task given out again. What a
    round leaves undone (tasks that lost their actor again and again, that failed in an unforeseen way, or that a
    broken execution never reached) goes into another round, as long as rounds finish anything. Tasks that are left
    when a whole round has finished none run alone, one after the other: one that kills its worker takes no other
    along. So a task may run more than once, even twice at the same time; a worker must make that harmless.

    Attributes:
        size: Actors.
        min_size: The pool starts with so many actors, and grows up to ``size`` while all of them are busy and the
            cluster has, or gets, room; None: it always has ``size``.
        num_cpus: CPUs of each actor.
        num_gpus: GPUs of each actor.
        concurrent_tasks: Tasks that an actor works on at the same time, each in a thread of its own; the worker then
            says itself, by locks, what of it must not run twice.
        restarts: Of one actor within a round. A bound, because what dies while it starts would be started for ever.
        patience: Rounds in a row that finish nothing, before giving up.
        stall_s: A round ends when all it waits for are lost actors, and none of them is back after so many seconds.
        stop: Asked to stop, the pool finishes the tasks that are under way, and the process ends.
    """

    size: int = 1
    min_size: int | None = None
    num_cpus: float = 1
    num_gpus: float = 0
    concurrent_tasks: int = 1
    restarts: int = 20
    patience: int = 3
    stall_s: float = 60.0
    stop: Stop | None = None

    def __call__(
        self, worker: Callable[..., Callable[[TaskT], ResultT]], arguments: Mapping[str, Any], tasks: Sequence[TaskT]
    ) -> Iterator[tuple[int, ResultT]]:
        """See `Mapper`.

        Raises:
            ClaraError: What a worker raised on purpose; at once.
            ClusterError: Some tasks could not be done; the message names them. All others are finished.
        """
        with closing(self._rounds(worker, arguments, tasks)) as results:
            if self.stop is None:
                yield from results
                return
            # Which tasks were under way when the signal came is Ray's to know. Tasks are given out in order, so that
            # these are among the next ones to come back; what is begun after them is lost, and done again.
            n_more: int | None = None
            with self.stop.deferred():
                for result in results:
                    yield result
                    if self.stop.is_asked:
                        n_more = (self._actors_at_most() * self._in_flight if n_more is None else n_more) - 1
                        if n_more == 0:
                            return

    def _actors_at_most(self) -> int:
        """What the cluster has room for now: a pool that may grow has not always done so."""
        total = ray.cluster_resources()
        each = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        return max(1, min([self.size, *(int(total.get(name, 0) / need) for name, need in each.items() if need)]))

    @property
    def _in_flight(self) -> int:
        """Tasks that an actor has: one waits while another runs, but no more, since an idle actor would miss them."""
        return max(2, self.concurrent_tasks)

    def _rounds(
        self, worker: Callable[..., Callable[[TaskT], ResultT]], arguments: Mapping[str, Any], tasks: Sequence[TaskT]
    ) -> Generator[tuple[int, ResultT], None, None]:
        todo = dict(enumerate(tasks))
        fruitless, alone = 0, False
        while todo:
            n_left = len(todo)
            failures: dict[int, str] = {}
            broken: Exception | None = None
            try:
                for index, result, failure in self._round(worker, arguments, todo, alone=alone):
                    if failure is not None:
                        failures[index] = failure
                        if len(todo) == n_left and len(failures) >= _HOPELESS * self.size:
                            break  # nothing works; the same failure thousands of times tells no more
                    elif todo.pop(index, None) is not None:  # a task that ran twice counts once
                        yield index, result
                else:
                    alone = len(todo) == n_left  # every one of them was tried, none was done
            except ClaraError:
                raise
            except Exception as error:  # whatever it is, it comes from Ray: a worker's failures are values
                broken = error
            fruitless = fruitless + 1 if len(todo) == n_left else 0
            if todo:
                logger.warning("%d of %d tasks are left: %s", len(todo), len(tasks), _reason(failures, broken))
            if fruitless == self.patience:
                cause = broken or (RuntimeError(next(iter(failures.values()))) if failures else None)
                raise _given_up(todo, failures, broken, self.patience) from cause
            if fruitless:
                time.sleep(2**fruitless)  # for a cluster that is in trouble

    def _round(
        self,
        worker: Callable[..., Callable[[TaskT], ResultT]],
        arguments: Mapping[str, Any],
        todo: Mapping[int, TaskT],
        *,
        alone: bool,
    ) -> Iterator[tuple[int, Any, str | None]]:
        """One execution: index, result and unforeseen failure of the tasks that did not lose their actor."""
        _set_context()
        rows = [{"index": index, "task": task} for index, task in todo.items()]
        with warnings.catch_warnings():
            # The only way yet to bound restarts and retries; without bounds a deadly task has no end.
            warnings.simplefilter("ignore", RayDeprecationWarning)
            dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
                _RowWorker,
                fn_constructor_kwargs={"worker": worker, "arguments": dict(arguments)},
                compute=self._strategy(len(rows), alone=alone),
                num_cpus=self.num_cpus,
                num_gpus=self.num_gpus,
                max_restarts=self.restarts,
                max_task_retries=0 if alone else _RETRIES,
            )
        # A task that loses its actor beyond the retries becomes a missing row instead of the end of all.
        dataset.context.max_errored_blocks = -1
        dataset.context.max_consecutive_actor_init_deaths = _INIT_DEATHS
        dataset.context.custom_execution_callback_classes = [partial(StallWatch, self.stall_s)]
        for row in dataset.iter_rows():
            if isinstance(row["failure"], ClaraError):
                raise row["failure"]
            yield row["index"], row["result"], row["failure"]

    def _strategy(self, n_tasks: int, *, alone: bool) -> ray.data.ActorPoolStrategy:
        if alone:
            return ray.data.ActorPoolStrategy(size=1, max_tasks_in_flight_per_actor=1)
        size = min(self.size, n_tasks)
        return ray.data.ActorPoolStrategy(
            min_size=min(self.min_size or size, size),
            max_size=size,
            max_tasks_in_flight_per_actor=self._in_flight,
            max_concurrent_calls_per_actor=self.concurrent_tasks,
            enable_true_multi_threading=self.concurrent_tasks > 1,
        )


class _RowWorker(Generic[TaskT, ResultT]):
    """A worker behind rows. Failures travel as values: Ray would hand them on as text, and only the first one."""

    def __init__(self, worker: Callable[..., Callable[[TaskT], ResultT]], arguments: Mapping[str, Any]) -> None:
        self.instance = worker(**arguments)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        result: ResultT | None = None
        failure: ClaraError | str | None = None
        try:
            result = self.instance(row["task"])
        except ClaraError as error:
            failure = error
        except Exception:
            failure = traceback.format_exc()
        return {"index": row["index"], "result": result, "failure": failure}


def _reason(failures: Mapping[int, str], broken: Exception | None, index: int | None = None) -> str:
    """Why a task is left, or if None is given any of them: the last line of what its worker said, if it could."""
    told = failures.get(index) if index is not None else next(iter(failures.values()), None)
    if told is not None:
        return told.strip().splitlines()[-1]
    return f"{type(broken).__name__}: {broken}" if broken else "the worker process died: killed, or out of memory"


def _given_up(
    todo: Mapping[int, Any], failures: Mapping[int, str], broken: Exception | None, patience: int
) -> ClusterError:
    lines = [f"{task}: {_reason(failures, broken, index)}" for index, task in list(todo.items())[:_SHOWN]]
    if len(todo) > _SHOWN:
        lines.append(f"and {len(todo) - _SHOWN} more")
    return ClusterError(
        f"Not one of the {len(todo)} tasks that are left could be done in {patience} attempts; the others are finished",
        got="\n    ".join(["", *lines]),
        hint="correct what is wrong there, and run the command again: it resumes",
    )


def _set_context() -> None:
    """Progress is the job's own: Ray Data's bars and console lines would tear it apart. Its log files stay."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Grow while every actor has all the tasks it works on at a time; Ray's 1.75 counts on longer queues.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    for handler in logging.getLogger("ray.data").handlers:
        if type(handler).__name__ != "SessionFileHandler":
            handler.setLevel(logging.CRITICAL)
