from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from clara_dist.distributed.session import connect
from clara_dist.errors import ClusterError


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any] | str]:
    """What `connect` asks of Ray."""
    made: list[dict[str, Any] | str] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: made.append(options))
    monkeypatch.setattr(ray, "shutdown", lambda: made.append("shutdown"))
    return made


@pytest.fixture
def head() -> Iterator[str]:
    """An address on which something listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_without_an_address_a_local_ray_is_started_and_ended(calls: list[Any]) -> None:
    with connect(num_cpus=3):
        # "local" and not None: None would join any Ray that runs on this machine.
        assert calls[0]["address"] == "local"
        assert (calls[0]["num_cpus"], calls[0]["dashboard_host"]) == (3, "127.0.0.1")
        assert calls[1:] == []
    assert calls[1:] == ["shutdown"]


def test_a_submitted_job_joins_its_cluster(calls: list[Any], head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", head)
    with connect(num_cpus=3):
        assert calls[0]["address"] == head
        assert "num_cpus" not in calls[0], "Ray refuses it for a cluster that is there"


def test_the_block_ends_the_connection_when_it_raises(calls: list[Any], head: str) -> None:
    with pytest.raises(KeyError), connect(head):
        raise KeyError
    assert calls[-1] == "shutdown"


def test_an_open_connection_is_used_and_left_open(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with connect("elsewhere:6379"):
        pass
    assert calls == []


def test_nothing_listens_there(calls: list[Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(ClusterError, match=f"cannot connect to Ray at {address}"), connect(address):
        pass
    assert calls == []
