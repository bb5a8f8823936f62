"""A cluster of real raylets: a head without CPUs, and two nodes with one each."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from chaos_corpus import compressors_below


def _may_mount() -> bool:
    command = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


# Some containers allow no mounts. What a full disk does to one shard is in tests/unit/store/test_writer.py, too.
collect_ignore = [] if _may_mount() else ["test_full_disk.py"]


@dataclass
class Nodes:
    """The cluster, and the means to hurt it."""

    cluster: Cluster
    workers: list[Any] = field(default_factory=list)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self) -> None:
        self.workers.append(self.cluster.add_node(num_cpus=1))
        self.cluster.wait_for_nodes()

    def kill_oldest(self) -> None:
        """End a raylet and all of its processes with SIGKILL."""
        self.cluster.remove_node(self.workers.pop(0), allow_graceful=False)

    def compressors(self) -> list[psutil.Process]:
        raylets = [node.all_processes["raylet"][0].process.pid for node in self.workers]
        return [process for pid in raylets for process in compressors_below(pid)]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Ended with the file's tests: its processes would slow all that follow."""
    nodes = Nodes(Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}))
    try:
        nodes.add()
        nodes.add()
        yield nodes
    finally:
        nodes.cluster.shutdown()
