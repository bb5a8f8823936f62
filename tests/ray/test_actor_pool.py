"""The actor pool on a real Ray: what is lost is done again, and what can never be done takes nothing along."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clara_dist.distributed.actor_pool import ActorPool
from clara_dist.errors import ClusterError, DataError


class Worker:
    """Squares numbers. Each task that is begun leaves a mark; some end badly, always or the first time."""

    def __init__(self, marks: str, ends: dict[int, str], first_time_only: bool) -> None:
        self.marks = Path(marks)
        self.ends = ends
        self.first_time_only = first_time_only

    def __call__(self, task: int) -> int:
        n_before = len(list(self.marks.glob(f"{task}-*")))
        (self.marks / f"{task}-{n_before}").touch()
        end = self.ends.get(task) if n_before == 0 or not self.first_time_only else None
        if end == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if end == "unforeseen":
            raise ValueError(f"no room for {task}")
        if end == "foreseen":
            raise DataError(f"row {task} is bad")
        return task * task


@pytest.fixture
def squares(local_ray: None, tmp_path: Path) -> Callable[..., dict[int, Any]]:
    found: dict[int, Any] = {}

    def run(ends: dict[int, str], *, first_time_only: bool, n_tasks: int = 12, **options: Any) -> dict[int, Any]:
        arguments = {"marks": str(tmp_path), "ends": ends, "first_time_only": first_time_only}
        try:
            for index, result in ActorPool(2, **options)(Worker, arguments, list(range(n_tasks))):
                assert index not in found, "a result came twice"
                found[index] = result
        except ClusterError as error:
            found[-1] = str(error)
        return found

    return run


def begun(marks: Path, task: int) -> int:
    return len(list(marks.glob(f"{task}-*")))


def test_what_fails_once_costs_nothing(squares: Any, tmp_path: Path) -> None:
    found = squares({2: "killed", 3: "killed", 7: "unforeseen", 11: "killed"}, first_time_only=True)
    assert found == {i: i * i for i in range(12)}
    assert all(begun(tmp_path, i) >= 2 for i in (2, 3, 7, 11))


def test_a_task_that_kills_its_worker_every_time_is_named_and_all_others_are_done(
    squares: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[bool] = []
    one_round = ActorPool._round

    def counted(*args: Any, alone: bool) -> Any:
        rounds.append(alone)
        return one_round(*args, alone=alone)

    monkeypatch.setattr(ActorPool, "_round", counted)
    found = squares({3: "killed", 7: "unforeseen"}, first_time_only=False, patience=2)
    error = found.pop(-1)
    assert found == {i: i * i for i in range(12) if i not in (3, 7)}
    assert "Not one of the 2 tasks that are left could be done in 2 attempts; the others are finished" in error
    assert "3: the worker process died: killed, or out of memory" in error
    assert "7: ValueError: no room for 7" in error
    # Two rounds with others, and one in which they run one by one; a task that waited for the same worker can be lost
    # with it in both, and then makes a round or two more.
    assert 3 <= len(rounds) <= 5
    assert rounds[-1]
    # At most three times in a round with others, and once in one without.
    assert 2 <= begun(tmp_path, 3) <= sum(1 if alone else 3 for alone in rounds)
    assert begun(tmp_path, 7) <= len(rounds)


def test_what_fails_everywhere_is_not_tried_thousands_of_times(squares: Any, tmp_path: Path) -> None:
    found = squares(dict.fromkeys(range(200), "unforeseen"), first_time_only=False, n_tasks=200, patience=1)
    assert list(found) == [-1]
    assert "and 195 more" in found[-1]
    assert sum(1 for _ in tmp_path.iterdir()) < 200


def test_an_error_raised_on_purpose_arrives_as_itself_at_once(squares: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 0 is bad"):
        squares({0: "foreseen"}, first_time_only=False)
    assert begun(tmp_path, 0) == 1


class DiesAtOnce:
    """A worker whose process cannot even start, like one whose libraries do not load."""

    def __init__(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def __call__(self, task: int) -> int:
        return task


def test_workers_that_cannot_start_are_not_started_for_ever(local_ray: None) -> None:
    with pytest.raises(ClusterError, match="Not one of the 2 tasks that are left could be done in 1 attempts"):
        list(ActorPool(1, restarts=1, patience=1, stall_s=5)(DiesAtOnce, {}, [1, 2]))
