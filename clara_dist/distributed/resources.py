"""Room for a job's workers: an error where there never will be any, a line from time to time where it is awaited."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Collection, Mapping
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util import placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup
from ray.util.state import list_actors
from ray.util.state.exception import RayStateApiException

from clara_dist.distributed.session import LOCAL_MARKER
from clara_dist.errors import ClaraError, ClusterError

_NOTICE_S = 30.0
_MAX_ACTORS = 1000
_SETTLE_S = 0.5


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
    if lacking is not None and is_local():
        raise ClusterError(
            f"this machine has no room for {who}",
            got=lacking,
            hint="ask for fewer workers, or fewer CPUs or GPUs for each; or name a cluster in RAY_ADDRESS",
        )


def is_local() -> bool:
    """Whether the connected Ray was started by `connect`: it has the resources that it has, and gets no others."""
    return LOCAL_MARKER in ray.cluster_resources()


def holders(each: Mapping[str, float], count: int = 1) -> str | None:
    """Who holds what workers wait for; None if there is room.

    Args:
        each: Resources of one worker.
        count: Workers that run at the same time.
    """
    free = ray.available_resources()
    names = [name for name, amount in each.items() if amount]
    if all(free.get(name, 0) >= each[name] * count for name in names):
        return None
    text = (
        f"{count} x ({_spelled(each)}) wait for room; free are {_spelled({name: free.get(name, 0) for name in names})}"
    )
    created = [g["bundles"].values() for g in placement_group_table().values() if g["state"] == "CREATED"]
    held = [{name: sum(bundle.get(name, 0) for bundle in bundles) for name in names} for bundles in created]
    texts = [f"a placement group ({_spelled(amounts)})" for amounts in held if any(amounts.values())]
    texts += [f"the actor {name} ({_spelled(amounts)})" for name, amounts in _actors(names)]
    return f"{text}; held by {', '.join(texts)}" if texts else text


def placement_groups() -> dict[str, str]:
    """The placement groups that this job has: the state of each (``CREATED``, ``PENDING`` ..) by its id."""
    # The id of a placement group ends with that of the job that made it.
    job = ray.get_runtime_context().get_job_id()
    return {
        key: group["state"]
        for key, group in placement_group_table().items()
        if key.endswith(job) and group["state"] != "REMOVED"
    }


def remove_placement_groups(keep: Collection[str]) -> None:
    """Remove this job's placement groups, but for ``keep``, with the actors in them.

    A group that an actor made lives on when the actor is killed: until the job ends, which may be long after.
    """
    # Who was just killed may have asked for one in its last moment: done is what is found empty twice.
    n_empty = 0
    while n_empty < 2:
        found = placement_groups().keys() - keep
        for key in found:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(key))))
        n_empty = 0 if found else n_empty + 1
        time.sleep(_SETTLE_S)


def _actors(names: list[str]) -> list[tuple[str, dict[str, float]]]:
    """Actors outside of placement groups that hold any of these resources; none where Ray has no dashboard to ask."""
    try:
        # Without the address it looks for a Ray of this machine, and fails where there are two.
        address = ray.get_runtime_context().gcs_address
        actors = list_actors(address, filters=[("state", "=", "ALIVE")], detail=True, limit=_MAX_ACTORS)
    except (RayStateApiException, ConnectionError):
        return []
    held = [(f"{actor.class_name} of job {actor.job_id}", actor.required_resources or {}) for actor in actors]
    amounts = [(who, {name: needs.get(name, 0) for name in names}) for who, needs in held]
    return [(who, amount) for who, amount in amounts if any(amount.values())]


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
