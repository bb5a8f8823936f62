"""Room for a job's workers: an error where there never will be any, a line from time to time where it is awaited."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from clara_dist.distributed.session import LOCAL_MARKER
from clara_dist.errors import ClaraError, ClusterError

_NOTICE_S = 30.0


def shortage(each: Mapping[str, float], count: int = 1) -> str | None:
    """What keeps workers from fitting the nodes that the cluster has now, busy or not; None if they fit.

    Args:
        each: Resources of one worker, which must lie on one node.
        count: Workers that run at the same time.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if sum(_capacity(node, each) for node in nodes) >= count:
        return None
    offers = "; ".join(_spelled({name: node.get(name, 0) for name in each}) for node in nodes)
    return f"{count} x ({_spelled(each)}) do not fit its nodes ({offers})"


def require_room(each: Mapping[str, float], count: int, who: str) -> None:
    """Refuse what a local Ray can never run. A cluster may have an autoscaler: there, waiting is right.

    Raises:
        ClusterError: The workers do not fit, and no node will be added.
    """
    lacking = shortage(each, count)
    if lacking is not None and LOCAL_MARKER in ray.cluster_resources():
        raise ClusterError(
            f"this machine has no room for {who}",
            got=lacking,
            hint="ask for fewer workers, or fewer CPUs or GPUs for each; or name a cluster in RAY_ADDRESS",
        )


def result_of(ref: ray.ObjectRef, each: Mapping[str, float], who: str) -> Any:
    """Wait for a task, and say from time to time what it waits for.

    Args:
        ref: The task's result.
        each: Resources that it asked for.
        who: Its name in messages.

    Raises:
        ClaraError: What the task raised.
        ClusterError: It raised anything else, or Ray lost it.
    """
    while not ray.wait([ref], timeout=_NOTICE_S)[0]:
        lacking = shortage(each)
        if lacking is not None:
            print(f"{who} waits for a node to be added: {lacking}", file=sys.stderr, flush=True)
        else:
            print(f"{who} is at work, or waits for {_spelled(each)} to be free", file=sys.stderr, flush=True)
    try:
        return ray.get(ref)
    except RayError as error:
        cause = error.cause if isinstance(error, RayTaskError) else None
        if isinstance(cause, ClaraError):
            raise cause from None
        raise ClusterError(f"{who} failed", got=error) from error


def _capacity(node: Mapping[str, float], each: Mapping[str, float]) -> int:
    needed = [(node.get(name, 0), amount) for name, amount in each.items() if amount > 0]
    # Ray counts in ten-thousandths; 0.3 / 0.1 must be 3.
    return min((math.floor(offered / amount + 1e-6) for offered, amount in needed), default=sys.maxsize)


def _spelled(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items() if amount or name == "CPU")
