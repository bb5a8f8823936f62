from __future__ import annotations

import pytest
import ray

from clara_dist.distributed.actor_pool import ActorPool


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (ActorPool(size=32, num_cpus=2), 2),
        (ActorPool(size=32, num_cpus=0.5), 10),
        (ActorPool(size=32, num_cpus=1, num_gpus=1), 3),
        (ActorPool(size=2, num_cpus=1, num_gpus=1), 2),
        (ActorPool(size=4, num_cpus=0, num_gpus=0), 4),
        (ActorPool(size=4, num_cpus=9), 1),  # a node that may yet come
    ],
)
def test_a_stop_waits_for_no_more_actors_than_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch, pool: ActorPool, expected: int
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 5.0, "GPU": 3.0, "memory": 1e9})
    assert pool._actors_at_most() == expected
