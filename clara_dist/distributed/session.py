"""Connection to a Ray cluster, or a local Ray for the length of a ``with`` block."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import ray
from ray._private import ray_constants

from clara_dist.errors import ClusterError

# A resource that only a Ray started here has: it ends with this process, and no autoscaler adds nodes to it.
LOCAL_MARKER = "clara_local_ray"
_CONNECT_TIMEOUT_S = 10.0


@contextmanager
def connect(
    address: str | None = None,
    *,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    log_to_driver: bool = False,
) -> Iterator[None]:
    """Be connected to Ray inside the block.

    A connection that exists already is used and left open. Otherwise ``address``, else ``RAY_ADDRESS`` (set inside
    ``ray job submit``), else a local Ray that ends with the block. A Ray that happens to run on this machine is not
    joined unless asked for (``address="auto"``): work would end up in a stranger's cluster.

    Authentication is Ray's own: ``RAY_AUTH_MODE`` and its token are respected as they are set, and Ray turns token
    authentication on by itself for a local start. A local Ray, all of its processes, listens on loopback only.

    Args:
        address: ``HOST:PORT`` of a head node, ``auto`` for the Ray on this machine, ``local`` to start one whatever
            ``RAY_ADDRESS`` says.
        num_cpus: CPUs of a local Ray; None: those of the machine. A cluster has its own.
        num_gpus: Likewise.
        log_to_driver: Repeat what workers print. Their errors arrive either way.

    Raises:
        ClusterError: No connection, or no local start.
    """
    if ray.is_initialized():
        yield
        return
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {}
    if where == "local":
        options = {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "resources": {LOCAL_MARKER: 1},
            "dashboard_host": "127.0.0.1",
        }
    else:
        _require_listening(where)
    try:
        with _on_loopback() if where == "local" else nullcontext():
            ray.init(address=where, logging_level=logging.ERROR, log_to_driver=log_to_driver, **options)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise ClusterError(
            "cannot start a local Ray" if where == "local" else f"cannot connect to Ray at {where}",
            got=error,
            hint="check the address and, if the cluster uses token authentication, RAY_AUTH_MODE and its token",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Make what Ray starts inside the block a machine of its own.

    Ray takes the outer address of a machine that may be in a cluster, and listens on all interfaces. On laptops, whose
    firewalls would ask, it does not; this is that switch. It was read when Ray was imported, and what is started reads
    it from the environment.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        del os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR]


def _require_listening(address: str) -> None:
    """Fail within seconds where nothing listens: Ray itself tries for minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        return  # "auto"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ClusterError(
            f"cannot connect to Ray at {address}", got=error, hint="check the address, and that the head node is up"
        ) from error


def cluster_has_gpus() -> bool:
    """Whether any node of the connected cluster offers a GPU."""
    return bool(ray.cluster_resources().get("GPU", 0))
