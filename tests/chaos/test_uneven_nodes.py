"""Nodes that differ: one is slow, their GPUs are shared by fractions, their object stores are full."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from clara_dist.distributed.actor_pool import ActorPool
from clara_dist.distributed.compress_job import compress
from clara_dist.distributed.session import connect

STORE_BYTES = 80 << 20  # Ray takes no less than 75 MB
FILLER_BYTES = 16 << 20


@pytest.fixture(scope="module")
def spilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spilled")


@pytest.fixture(scope="module")
def uneven(spilled: Path) -> Iterator[None]:
    """A head without CPUs, and two nodes that say they have a GPU each (nobody computes on them); one is called slow.

    The tests are connected to it.
    """
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args=head | {"object_spilling_directory": str(spilled)})
    try:
        for name in ("slow", "fast"):
            cluster.add_node(num_cpus=2, num_gpus=1, resources={name: 1}, object_store_memory=STORE_BYTES)
        cluster.wait_for_nodes()
        with connect(cluster.address):
            yield
    finally:
        cluster.shutdown()


class Place:
    """Says where a task ran; on the slow node it takes two hundred times as long."""

    def __init__(self) -> None:
        own = ray.get_runtime_context().get_node_id()
        resources = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == own)
        self.node = "slow" if "slow" in resources else "fast"
        self.gpus = ",".join(map(str, ray.get_gpu_ids()))

    def __call__(self, task: int) -> tuple[str, str, int]:
        time.sleep(2.0 if self.node == "slow" else 0.01)
        return self.node, self.gpus, os.getpid()


def test_a_slow_node_is_given_less_and_not_waited_for(uneven: None) -> None:
    done = list(ActorPool(4, concurrent_tasks=2)(Place, {}, list(range(100))))
    assert sorted(index for index, _ in done) == list(range(100))
    nodes = [node for _, (node, _, _) in done]
    assert "slow" in nodes
    # Its actors may be the first to start. From when both are at work, whoever is free takes the next task.
    together = Counter(nodes[nodes.index("fast") :])
    print(dict(Counter(nodes)), "together:", dict(together))
    assert together["slow"] <= together["fast"] / 3, "in equal shares it would be as many"


def test_actors_share_gpus_by_fractions(uneven: None) -> None:
    found = dict(ActorPool(4, num_cpus=0.5, num_gpus=0.5)(Place, {}, list(range(60))))
    assert len(found) == 60
    places = {pid: (node, gpus) for node, gpus, pid in found.values()}
    assert Counter(places.values()) == {("slow", "0"): 2, ("fast", "0"): 2}, "two actors on each GPU, none without"


def test_a_full_object_store_changes_no_bit(uneven: None, spilled: Path, tiny_clara_dir: Path, tmp_path: Path) -> None:
    # Not above: workers import this module for `Place`, and do not find the folder of the tests.
    from chaos_corpus import rows_of, undisturbed, write_config

    fillers = [np.full(FILLER_BYTES, i, np.uint8) for i in range(12)]
    held = [ray.put(filler) for filler in fillers]  # 192 MB, of which the driver's node keeps 80 in memory
    config = write_config(tmp_path / "job", tiny_clara_dir, n_documents=300, rows_per_shard=10, workers=4)
    expected = undisturbed(config, tmp_path / "undisturbed")
    report = compress(config)
    assert (report.n_documents, report.n_rejected) == (300, 2)
    assert rows_of(config.store) == expected
    on_disk = sum(path.stat().st_size for path in spilled.rglob("*") if path.is_file())
    print(f"{on_disk >> 20} MB spilled")
    assert on_disk > 4 * FILLER_BYTES
    for ref, filler in zip(held, fillers, strict=True):
        assert np.array_equal(ray.get(ref), filler), "what was spilled comes back"
