"""A server that is hurt and changed while eight clients ask it without a pause.

Its bounds are those that the project promises: at most 1 % of the requests fail when a replica dies, for at most 30 s,
and none when the server or its store is changed on purpose. What it measured is printed (``pytest -s``).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from clara_dist.config.serve import LimitsConfig, ServeConfig
from clara_dist.store import delete
from clara_dist.store.fingerprint import Fingerprint

N_CLIENTS = 8
# A busy machine answers a few requests a second.
_PATIENCE_S = 400.0
# At least so many requests are counted where a share of them may fail.
_REQUESTS = 800
# And so many after an event that none may notice.
_AFTER = 100


class Load:
    """Clients that ask, each one question after the other, until the block ends; those that fail wait 0.1 s."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.ok: list[dict[str, Any]] = []
        self.failed: list[tuple[float, str]] = []

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def n(self) -> int:
        return len(self.ok) + len(self.failed)

    def share_failed(self) -> float:
        return len(self.failed) / self.n

    def failing_s(self) -> float:
        """From the first failure to the last."""
        return self.failed[-1][0] - self.failed[0][0] if self.failed else 0.0

    def run_until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not true():
            assert time.monotonic() < deadline, f"it did not happen; failed: {self.failed[-3:]}"
            self._stop.wait(0.05)

    def run_on(self, until: int = 0) -> None:
        n = max(self.n + _AFTER, until)
        self.run_until(lambda: self.n >= n)

    async def _run(self) -> None:
        async with httpx.AsyncClient(base_url=self._url, timeout=60, trust_env=False) as http:
            await asyncio.gather(*(self._client(http, i) for i in range(N_CLIENTS)))

    async def _client(self, http: httpx.AsyncClient, i: int) -> None:
        while not self._stop.is_set():
            try:
                response = await http.post("/v1/answers", json={"question": f"Who built lighthouse {i}?"})
                problem = "" if response.status_code == 200 else f"{response.status_code} {response.text[:200]}"
            except httpx.HTTPError as error:
                problem = repr(error)
            if problem:
                self.failed.append((time.monotonic(), problem))
                await asyncio.sleep(0.1)
            else:
                self.ok.append(response.json())


def replicas(name: str) -> list[psutil.Process]:
    """The processes of a deployment of the application under load."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            title = process.cmdline()[:1]
        except psutil.Error:
            continue
        if title and title[0].startswith(f"ray::ServeReplica:holding:{name}"):
            found.append(process)
    return found


@pytest.fixture(scope="module")
def store_of_its_own(
    write_store: Callable[[Path, Fingerprint | None], None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("holding") / "store"
    write_store(path, None)
    return path


@pytest.fixture(scope="module")
def config(serve_config: ServeConfig, store_of_its_own: Path) -> ServeConfig:
    changes = {
        "store": str(store_of_its_own),
        "store_refresh_s": 0.2,
        "retriever_shards": 1,
        "on_lost_shard": "error",
        "engine_replicas": 2,
        "retriever_replicas": 2,
        "ingress_replicas": 2,
        "max_tokens": 4,
        "limits": LimitsConfig(shard_timeout_s=20, request_timeout_s=60),
    }
    return serve_config.model_copy(update=changes)


@pytest.fixture(scope="module")
def holding(server: str, config: ServeConfig) -> Iterator[str]:
    from clara_dist.distributed.serve_app import deploy, remove

    deploy(config, name="holding", route_prefix="/holding")
    yield f"{server}/holding"
    remove("holding", config)


@pytest.mark.parametrize("name", ["Engine", "Retriever", "Ingress"])
def test_a_replica_is_killed_under_load(holding: str, name: str) -> None:
    with Load(holding) as load:
        load.run_until(lambda: len(load.ok) >= 50 and len(replicas(name)) == 2)
        victim = replicas(name)[0]
        victim.kill()
        load.run_until(lambda: len([each for each in replicas(name) if each.pid != victim.pid]) == 2)
        load.run_on(until=_REQUESTS)
    print(f"\n{name} killed: {len(load.failed)} of {load.n} failed, for {load.failing_s():.1f} s: {load.failed[:3]}")
    assert load.share_failed() <= 0.01
    assert load.failing_s() <= 30


def test_the_store_changes_under_load(holding: str, store_of_its_own: Path) -> None:
    with Load(holding) as load:
        load.run_until(lambda: len(load.ok) >= 50)
        best = load.ok[-1]["sources"][0]["doc_id"]
        version = delete(str(store_of_its_own), doc_ids=[best]).manifest.version
        load.run_until(lambda: load.ok[-1]["store_version"] == version)
        load.run_on()
    print(f"\nstore changed: {len(load.failed)} of {load.n} failed")
    assert load.failed == []
    for reply in load.ok:
        if reply["store_version"] == version:
            assert best not in [source["doc_id"] for source in reply["sources"]]


def test_the_server_is_updated_under_load(holding: str, config: ServeConfig) -> None:
    """Every deployment is rolled over, for a setting that all of them are made with."""
    from clara_dist.distributed.serve_app import deploy

    before = {process.pid for name in ("Engine", "Retriever", "Ingress") for process in replicas(name)}
    assert len(before) == 6
    with Load(holding) as load:
        load.run_until(lambda: len(load.ok) >= 50)
        deploy(config.model_copy(update={"max_tokens": 3}), name="holding", route_prefix="/holding")

        def is_new() -> bool:
            after = {process.pid for name in ("Engine", "Retriever", "Ingress") for process in replicas(name)}
            return len(after) == 6 and not after & before

        load.run_until(is_new)
        load.run_on()
    print(f"\nserver updated: {len(load.failed)} of {load.n} failed: {load.failed[:3]}")
    assert load.failed == []
    assert {reply["usage"]["completion_tokens"] <= 3 for reply in load.ok[-20:]} == {True}


def test_a_server_that_stops_finishes_what_it_has_begun(holding: str, config: ServeConfig) -> None:
    """Whoever comes later is told that nothing is there (any more); nobody's connection breaks."""
    from clara_dist.distributed.serve_app import remove

    with Load(holding) as load:
        load.run_until(lambda: len(load.ok) >= 50)
        remove("holding", config)
        load.run_until(lambda: len(load.failed) >= N_CLIENTS)
    print(f"\nserver stopped: {load.failed[:1]}")
    statuses = {problem.split()[0] for _, problem in load.failed}
    assert "404" in statuses
    assert statuses <= {"404", "503"}
