"""Does every node of the cluster see the files that a job reads, and the directory that it writes?"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Sequence
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from clara_dist.errors import ClusterError


def require_visible(readable: Sequence[str], writable_dir: str | None) -> None:
    """Look from every node that the cluster has now.

    Args:
        readable: Local paths that must exist.
        writable_dir: Directory that must be the driver's own and writable; made if it does not exist. None: not asked.

    Raises:
        ClusterError: Naming the nodes and what they miss; or a node was lost meanwhile.
    """
    marker = None
    if writable_dir is not None:
        # A directory of the same name on a node's own disk must not pass: the marker tells them apart.
        Path(writable_dir).mkdir(parents=True, exist_ok=True)
        marker = Path(writable_dir) / f".marker-{uuid.uuid4().hex}"
        marker.touch()
    try:
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        look = ray.remote(num_cpus=0)(missing_paths)
        refs = [
            look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
                list(readable), None if marker is None else str(marker)
            )
            for node in nodes
        ]
        missing = [line for lines in ray.get(refs) for line in lines]
    except RayError as error:
        raise ClusterError("a node was lost while it was looked at", got=error, hint="try again") from error
    finally:
        if marker is not None:
            marker.unlink(missing_ok=True)
    if missing:
        raise ClusterError(
            "some nodes do not see what the job needs",
            got="; ".join(missing),
            hint="check the paths; on a cluster, all nodes must mount them at the same place",
        )


def missing_paths(readable: Sequence[str], marker: str | None) -> list[str]:
    """What this node lacks, as lines that name it; empty if nothing."""
    host = socket.gethostname()
    missing = [f"{host}: no {path}" for path in readable if not os.path.exists(path)]
    if marker is not None:
        folder = os.path.dirname(marker)
        if not os.path.exists(marker):
            missing.append(f"{host}: {folder} is not the driver's directory")
        elif not os.access(folder, os.W_OK):
            missing.append(f"{host}: {folder} is not writable")
    return missing
