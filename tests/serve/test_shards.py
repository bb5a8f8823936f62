"""A real server that loses a part of its store, and one whose store changes while it is asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from clara_dist.config.serve import ServeConfig
from clara_dist.store import delete
from clara_dist.store.fingerprint import Fingerprint

N_DOCUMENTS = 37
_PATIENCE_S = 120.0


def replica(name: str) -> psutil.Process:
    """The process of a deployment's one replica."""
    (found,) = [
        process
        for process in psutil.Process().children(recursive=True)
        if any(part.startswith("ray::ServeReplica") and part.endswith(name) for part in process.cmdline())
    ]
    return found


def until(true: Callable[[], bool]) -> Iterator[None]:
    deadline = time.monotonic() + _PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        yield


def found_by(reply: dict[str, Any]) -> list[tuple[str, float]]:
    return [(source["doc_id"], source["score"]) for source in reply["sources"]]


def test_a_lost_retriever_leaves_flagged_answers_and_is_replaced(server: str, http: httpx.Client) -> None:
    body = {"question": "Where are the rain gauges?", "top_k": N_DOCUMENTS}
    whole = http.post("/v1/retrieve", json=body).json()
    assert whole["missing_shards"] == 0
    replica("Retriever-1").kill()
    replies: list[dict[str, Any]] = []

    def is_back() -> bool:
        return len(replies) > 1 and not replies[-1]["missing_shards"] and bool(replies[-2]["missing_shards"])

    for _ in until(is_back):
        response = http.post("/v1/retrieve", json=body)
        assert response.status_code == 200
        replies.append(response.json())
        assert replies[-1]["missing_shards"] or found_by(replies[-1]) == found_by(whole)
    partial = replies[-2]
    assert partial["missing_shards"] == 1
    assert found_by(partial) == [each for each in found_by(whole) if each in found_by(partial)]
    assert len(partial["sources"]) == 20
    assert found_by(http.post("/v1/retrieve", json=body).json()) == found_by(whole)
    assert "clara_partial_answers_total" in http.get("/metrics").text


def test_a_new_version_is_served_without_a_failed_request(
    server: str,
    http: httpx.Client,
    serve_config: ServeConfig,
    write_store: Callable[[Path, Fingerprint | None], None],
    tmp_path: Path,
) -> None:
    from clara_dist.distributed.serve_app import deploy

    write_store(tmp_path / "store", None)
    changes = {"store": str(tmp_path / "store"), "store_refresh_s": 0.2}
    deploy(serve_config.model_copy(update=changes), name="following", route_prefix="/following")
    body = {"question": "Where are the rain gauges?", "top_k": N_DOCUMENTS - 1}
    versions: list[int] = []

    def ask() -> dict[str, Any]:
        response = http.post("/following/v1/answers", json=body | {"max_tokens": 2})
        assert response.status_code == 200, response.text
        versions.append(response.json()["store_version"])
        return response.json()

    best = found_by(ask())[0][0]
    delete(str(tmp_path / "store"), doc_ids=[best])
    for _ in until(lambda: versions[-1] == 2):
        reply = ask()
        assert (best in dict(found_by(reply))) is (reply["store_version"] == 1)
    assert http.get("/following/healthz").json()["n_documents"] == N_DOCUMENTS - 1
    too_many = http.post("/following/v1/answers", json=body | {"top_k": N_DOCUMENTS})
    assert too_many.status_code == 400


@pytest.fixture(autouse=True)
def _nothing_left(server: str) -> Iterator[None]:
    yield
    from ray import serve

    if "following" in serve.status().applications:
        serve.delete("following")
