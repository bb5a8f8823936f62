"""An end for executions of Ray Data that wait for an actor which does not come back.

Ray restarts an actor whose node was lost as soon as some node has room for it, and the tasks that it had wait for that,
even while other actors have nothing left to do. Without a new node they would wait for ever. This is the only place
that looks into Ray Data's own objects (those of ray 2.60).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ray.core.generated.gcs_pb2 import ActorTableData
from ray.data._internal.execution.execution_callback import ExecutionCallback


class StalledError(Exception):
    """No actor that is alive has work, and the others do not come back. Caught by `ActorPool`."""


class StallWatch(ExecutionCallback):
    """Ends an execution that has been stalled for some time. Ray Data calls it several times a second.

    Args:
        patience_s: How long. An actor that is restarted where there is room is back within seconds.
        clock: Seconds, monotonic.
    """

    def __init__(self, patience_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience_s = patience_s
        self._clock = clock
        self._since: float | None = None

    def on_execution_step(self, executor: Any) -> None:
        pools = [pool for operator in executor._topology for pool in operator.get_autoscaling_actor_pools()]
        if not any(is_stalled(pool) for pool in pools):
            self._since = None
            return
        now = self._clock()
        self._since = now if self._since is None else self._since
        if now - self._since >= self._patience_s:
            raise StalledError(f"all unfinished tasks have waited {self._patience_s:g} s for actors to be restarted")


def is_stalled(pool: Any) -> bool:
    """Whether no living actor of a pool has a task, although tasks are under way, or nobody is left to be given one."""
    running = pool._running_actors
    living = [state for actor, state in running.items() if actor._get_local_state() == ActorTableData.ALIVE]
    if any(state.num_tasks_in_flight for state in living):
        return False
    nobody = bool(running) and not living and not pool.num_pending_actors()
    return nobody or pool.num_tasks_in_flight() > 0
