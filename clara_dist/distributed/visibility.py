"""Does every node of the cluster see the files that a job reads, and the place that it writes?"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Sequence

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from clara_dist.errors import ClaraError, ClusterError
from clara_dist.store import files
from clara_dist.store.storage import open_storage

_MAX_LOST = 5


def require_visible(readable: Sequence[str], writable: str | None) -> None:
    """Look from every node that the cluster has now.

    Args:
        readable: Paths or URLs that must exist.
        writable: Directory or URL that must be the driver's own and writable; a directory is made if it does not exist.
            None: not asked.

    Raises:
        ClusterError: Naming the nodes and what they miss; or nodes are lost again and again.
        StoreError: The driver itself may not write there.
    """
    # A directory of the same name on a node's own disk must not pass: the marker tells them apart.
    marker = None if writable is None else (writable, f".marker-{uuid.uuid4().hex}")
    if marker is not None:
        open_storage(marker[0]).publish(marker[1], b"", exclusive=True)
    try:
        missing = _ask_nodes(readable, marker)
    finally:
        if marker is not None:
            open_storage(marker[0]).delete(marker[1])
    if missing:
        raise ClusterError(
            "some nodes do not see what the job needs",
            got="; ".join(missing),
            hint="check the paths; on a cluster, all nodes must mount them at the same place, and object stores need "
            "their credentials in the environment of every node",
        )


def _ask_nodes(readable: Sequence[str], marker: tuple[str, str] | None) -> list[str]:
    look = ray.remote(num_cpus=0)(missing_paths)
    n_lost = 0
    while True:
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        refs = [
            look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
                list(readable), marker
            )
            for node in nodes
        ]
        try:
            return [line for lines in ray.get(refs) for line in lines]
        except RayError as error:
            n_lost += 1  # and is not asked again
            if n_lost == _MAX_LOST:
                raise ClusterError("nodes are lost while they are looked at", got=error, hint="try again") from error


def missing_paths(readable: Sequence[str], marker: tuple[str, str] | None) -> list[str]:
    """What this node lacks, as lines that name it; empty if nothing.

    Args:
        readable: Paths or URLs that must exist.
        marker: Folder or URL, and name of the file that the driver left in it.
    """
    host = socket.gethostname()
    missing = []
    for path in readable:
        try:
            if not _exists(path):
                missing.append(f"{host}: no {path}")
        except ClaraError as error:
            missing.append(f"{host}: {error.what} ({error.got})")
    if marker is not None:
        missing += [f"{host}: {line}" for line in _not_writable(*marker)]
    return missing


def _exists(path: str) -> bool:
    if files.is_url(path):
        return files.size_bytes(path) is not None or files.is_folder(path)
    return os.path.exists(path)


def _not_writable(folder: str, marker: str) -> list[str]:
    storage = open_storage(folder)
    try:
        if storage.size_bytes(marker) is None:
            return [f"{folder} is not the driver's"]
        storage.publish(marker, b"", exclusive=False)
    except OSError as error:
        return [f"{folder} is not writable ({error.strerror})"]
    except ClaraError as error:
        return [f"{error.what} ({error.got})"]
    return []
