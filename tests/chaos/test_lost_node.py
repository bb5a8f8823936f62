"""A node that is lost and never replaced: its tasks go to the others, which are fewer then."""

from __future__ import annotations

import os
from typing import Any

from clara_dist.distributed.actor_pool import ActorPool
from clara_dist.distributed.session import connect


class Where:
    """Says which process did a task; takes a while, so that a lost worker has one under way."""

    def __call__(self, task: int) -> tuple[int, int]:
        total = sum(range(2_000_000))
        return task if total else -1, os.getpid()


def test_a_lost_node_is_not_waited_for(nodes: Any) -> None:
    found: dict[int, tuple[int, int]] = {}
    with connect(nodes.address):
        for index, result in ActorPool(2, stall_s=5)(Where, {}, list(range(60))):
            assert index not in found
            found[index] = result
            if len(found) == 20:
                nodes.kill_oldest()
    assert {index: task for index, (task, _) in found.items()} == {i: i for i in range(60)}
    assert len({pid for _, pid in found.values()}) >= 2
