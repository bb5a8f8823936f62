"""A plain callable class over many inputs: serially, or in a Ray Data actor pool."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import ray
from ray.exceptions import RayError, UserCodeException

from clara_dist.errors import ClaraError, ClusterError

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")

logger = logging.getLogger(__name__)


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

    Ray Data restarts a lost actor and gives its task to another one. An execution that breaks as a whole (a lost node
    can do that) is started again with the tasks that have no result yet, so a worker must be idempotent.

    Attributes:
        size: Actors.
        num_cpus: CPUs of each actor.
        num_gpus: GPUs of each actor.
        attempts: Executions before giving up.
    """

    size: int = 1
    num_cpus: float = 1
    num_gpus: float = 0
    attempts: int = 3

    def __call__(
        self, worker: Callable[..., Callable[[TaskT], ResultT]], arguments: Mapping[str, Any], tasks: Sequence[TaskT]
    ) -> Iterator[tuple[int, ResultT]]:
        """See `Mapper`.

        Raises:
            ClaraError: What a worker raised.
            ClusterError: Ray failed in every attempt, or a worker raised what it should not.
        """
        todo = dict(enumerate(tasks))
        for attempt in range(1, self.attempts + 1):
            try:
                for index, result in self._execute(worker, arguments, todo):
                    # A task that ran twice (its actor was lost after the work was done) counts once.
                    if todo.pop(index, None) is not None:
                        yield index, result
                break
            except UserCodeException as error:
                raise ClusterError("a worker failed", got=error) from error
            except RayError as error:
                logger.warning("Ray failed (attempt %d of %d): %s", attempt, self.attempts, error)
                if attempt == self.attempts:
                    raise ClusterError(
                        f"Ray failed {self.attempts} times", got=error, hint="run the command again: it resumes"
                    ) from error
        if todo:
            raise ClusterError("Ray returned no result for some tasks", got=f"{len(todo)} of {len(tasks)} missing")

    def _execute(
        self,
        worker: Callable[..., Callable[[TaskT], ResultT]],
        arguments: Mapping[str, Any],
        todo: Mapping[int, TaskT],
    ) -> Iterator[tuple[int, ResultT]]:
        if not todo:
            return
        _quiet()
        rows = [{"index": index, "task": task} for index, task in todo.items()]
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _RowWorker,
            fn_constructor_kwargs={"worker": worker, "arguments": dict(arguments)},
            compute=ray.data.ActorPoolStrategy(size=min(self.size, len(rows))),
            num_cpus=self.num_cpus,
            num_gpus=self.num_gpus,
        )
        for row in dataset.iter_rows():
            if row["error"] is not None:
                raise row["error"]
            yield row["index"], row["result"]


class _RowWorker(Generic[TaskT, ResultT]):
    """A worker behind rows. Expected errors travel as values: Ray would hand them on as text in a traceback."""

    def __init__(self, worker: Callable[..., Callable[[TaskT], ResultT]], arguments: Mapping[str, Any]) -> None:
        self.instance = worker(**arguments)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return {"index": row["index"], "result": self.instance(row["task"]), "error": None}
        except ClaraError as error:
            return {"index": row["index"], "result": None, "error": error}


def _quiet() -> None:
    """Progress is the job's own: Ray Data's bars and console lines would tear it apart. Its log files stay."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for handler in logging.getLogger("ray.data").handlers:
        if type(handler).__name__ != "SessionFileHandler":
            handler.setLevel(logging.CRITICAL)
