"""Room for workers, on made-up nodes."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from clara_dist.distributed import resources
from clara_dist.distributed.session import LOCAL_MARKER
from clara_dist.errors import ClusterError


def cluster(monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, float], local: bool = False) -> None:
    alive: list[dict[str, Any]] = [{"Alive": True, "Resources": node} for node in nodes]
    dead = {"Alive": False, "Resources": {"CPU": 99.0, "GPU": 99.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [*alive, dead])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {LOCAL_MARKER: 1.0} if local else {})


@pytest.mark.parametrize(
    ("each", "count", "fits"),
    [
        ({"CPU": 1}, 5, True),
        ({"CPU": 1}, 6, False),
        ({"CPU": 2}, 2, True),
        ({"CPU": 2}, 3, False),  # 5 CPUs, but one is left over on the second node
        ({"CPU": 1, "GPU": 1}, 1, True),
        ({"CPU": 1, "GPU": 1}, 2, False),
        ({"CPU": 3, "GPU": 1}, 1, False),  # the GPU's node has 2 CPUs
        ({"CPU": 0.1, "GPU": 0}, 50, True),
        ({"CPU": 0.1, "GPU": 0}, 51, False),
        ({"CPU": 0.3}, 16, True),
    ],
)
def test_a_worker_lies_on_one_node(
    monkeypatch: pytest.MonkeyPatch, each: dict[str, float], count: int, fits: bool
) -> None:
    cluster(monkeypatch, {"CPU": 2.0, "GPU": 1.0}, {"CPU": 3.0})
    assert (resources.shortage(each, count) is None) == fits


def test_only_a_local_ray_refuses_what_it_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, {"CPU": 2.0}, local=True)
    resources.require_room({"CPU": 1}, 2, "two workers")
    with pytest.raises(ClusterError, match="no room for three workers") as caught:
        resources.require_room({"CPU": 1, "GPU": 1}, 3, "three workers")
    assert caught.value.got == "3 x (1 CPU, 1 GPU) do not fit its nodes (2 CPU)"
    cluster(monkeypatch, {"CPU": 2.0})  # an autoscaler may add a node
    resources.require_room({"CPU": 1}, 3, "three workers")


def test_a_task_that_no_node_can_run_says_so_again_and_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster(monkeypatch, {"CPU": 2.0})
    looks = iter([[], [], ["ref"]])
    monkeypatch.setattr(ray, "wait", lambda refs, timeout: (next(looks), []))
    monkeypatch.setattr(ray, "get", lambda ref: 7)
    assert resources.result_of("ref", {"CPU": 4}, "the task") == 7  # type: ignore[arg-type]
    line = "the task waits for a node to be added: 1 x (4 CPU) do not fit its nodes (2 CPU)\n"
    assert capsys.readouterr().err == line * 2
