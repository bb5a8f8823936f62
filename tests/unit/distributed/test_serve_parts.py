"""Parts of a store behind one search: what is merged, what a lost part means, how a new version is taken up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError

from clara_dist.config.serve import LimitsConfig, ServeConfig
from clara_dist.distributed import serve_parts
from clara_dist.distributed.serve_parts import Retrievers
from clara_dist.distributed.serve_retriever import Retrieved, Retriever
from clara_dist.errors import FilterError, FingerprintMismatchError, UnavailableError
from clara_dist.store import Fingerprint, append_store, delete
from tiny_stores import FINGERPRINT, build_store, random_memory

N = 60
SHARDS = [20, 3, 17, 15, 5]


class Response:
    """A `DeploymentResponse`: it starts at once."""

    def __init__(self, work: Coroutine[Any, Any, Any]) -> None:
        self._task = asyncio.ensure_future(work)

    def __await__(self) -> Any:
        return self._task.__await__()

    def cancel(self) -> None:
        self._task.cancel()


class Handle:
    """A `DeploymentHandle` over a retriever in this process, which can be lost (its calls fail) or hang."""

    def __init__(self, retriever: Retriever) -> None:
        self.retriever = retriever
        self.failures = 0
        self.hangs = False
        self.search_s = 0.0
        self.calls: list[str] = []
        for name in ("search", "describe", "newest"):
            setattr(self, name, SimpleNamespace(remote=self._remote(name)))

    def _remote(self, name: str) -> Callable[..., Response]:
        async def work(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            while self.hangs:
                await asyncio.sleep(0.01)
            if name == "search":
                await asyncio.sleep(self.search_s)
            if self.failures:
                self.failures -= 1
                raise ActorDiedError
            return await getattr(self.retriever, name)(*args, **kwargs)

        return lambda *args, **kwargs: Response(work(*args, **kwargs))


def settings(path: Path, **more: Any) -> ServeConfig:
    limits = LimitsConfig(shard_timeout_s=0.3)
    return ServeConfig(model="m", store=str(path), **({"store_refresh_s": 0, "limits": limits} | more))


async def parts_of(path: Path, n: int, **more: Any) -> tuple[Retrievers, list[Handle]]:
    config = settings(path, retriever_shards=n, **more)
    handles = [Handle(Retriever(config, shard)) for shard in range(n)]
    retrievers = Retrievers(handles, config, FINGERPRINT)  # type: ignore[arg-type]
    await retrievers.start()
    return retrievers, handles


@pytest.fixture
def store(tmp_path: Path) -> Path:
    memory = random_memory(N)
    memory[33] = memory[2]  # in another shard, at the same score
    metadata = [{"number": i} for i in range(N)]
    build_store(tmp_path, memory, SHARDS, metadata=metadata, metadata_columns={"number": "int64"})
    return tmp_path


def queries(n: int = 4) -> np.ndarray:
    vectors = random_memory(n, seed=9).reshape(n, -1).astype(np.float32)
    vectors[0] = random_memory(N)[2].reshape(-1)
    return vectors


def same(found: Retrieved, expected: Retrieved) -> None:
    assert [[d.doc_id for d in documents] for documents in found.documents] == [
        [d.doc_id for d in documents] for documents in expected.documents
    ]
    assert found.scores == expected.scores
    np.testing.assert_array_equal(found.memory_TMD, expected.memory_TMD)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_parts_together_find_what_one_search_finds(store: Path, n: int) -> None:
    """Equal scores in two parts, different numbers of documents a question, filters, more parts than shards."""
    top_k, where = [5, 1, N, 7], [None, "number >= 30", "number in (3, 4, 59)", None]

    async def search() -> tuple[Retrieved, Retrieved]:
        whole, _ = await parts_of(store, 1)
        parts, _ = await parts_of(store, n)
        return tuple([await each.search(queries(), top_k, where, with_memory=True) for each in (whole, parts)])  # type: ignore[return-value]

    whole, parts = asyncio.run(search())
    assert [d.doc_id for d in whole.documents[0]][:2] == ["doc-2", "doc-33"]
    assert [len(documents) for documents in parts.documents] == [5, 1, 3, 7]
    same(parts, whole)
    assert parts.missing_shards == 0


@pytest.mark.parametrize("on_lost", ["partial", "error"])
@pytest.mark.parametrize("n_lost", [1, 2])
def test_a_part_that_is_back_before_the_others_answer_is_still_missing(store: Path, n_lost: int, on_lost: str) -> None:
    async def search() -> Retrieved | UnavailableError:
        retrievers, handles = await parts_of(store, 2, on_lost_shard=on_lost)
        handles[1].search_s = 0.1
        for handle in handles[:n_lost]:
            handle.failures = 2  # both tries of the search; its probe then succeeds at once
        try:
            return await retrievers.search(queries(), [3] * 4, [None] * 4, with_memory=True)
        except UnavailableError as error:
            return error

    found = asyncio.run(search())
    if n_lost == 1 and on_lost == "partial":
        assert isinstance(found, Retrieved)
        assert found.missing_shards == 1
    else:
        assert f"{n_lost} of 2 parts" in str(found)


def test_a_lost_part_is_told_or_refused_and_comes_back(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_parts, "_PROBE_S", 0.01)
    ask = {"top_k": [N] * 4, "where": [None] * 4, "with_memory": True}

    async def lose(on_lost: str) -> tuple[Retrieved, Any, Retrieved]:
        retrievers, handles = await parts_of(store, 3, on_lost_shard=on_lost)
        whole = await retrievers.search(queries(), **ask)
        handles[1].hangs = True
        try:
            during: Any = await retrievers.search(queries(), **ask)
        except UnavailableError as error:
            during = error
        assert retrievers.n_missing == 1
        n_searches = handles[1].calls.count("search")
        if on_lost == "partial":
            await retrievers.search(queries(), **ask)  # at once: the lost part is not waited for
        else:
            with pytest.raises(UnavailableError):
                await retrievers.search(queries(), **ask)
        assert handles[1].calls.count("search") == n_searches
        handles[1].hangs = False
        while retrievers.n_missing:
            await asyncio.sleep(0.01)
        return whole, during, await retrievers.search(queries(), **ask)

    whole, during, after = asyncio.run(lose("partial"))
    assert during.missing_shards == 1
    kept = [d.doc_id for d in during.documents[0]]
    assert 0 < len(kept) < N
    assert kept == [d.doc_id for d in whole.documents[0] if d.doc_id in kept]
    same(after, whole)
    assert (whole.missing_shards, after.missing_shards) == (0, 0)

    whole, during, after = asyncio.run(lose("error"))
    assert "1 of 3 parts" in str(during)
    assert during.status == 503
    same(after, whole)


def test_no_part_left_is_an_error_whatever_the_setting(store: Path) -> None:
    async def lose_all() -> None:
        retrievers, handles = await parts_of(store, 2, on_lost_shard="partial")
        for handle in handles:
            handle.hangs = True
        await retrievers.search(queries(), [1] * 4, [None] * 4, with_memory=False)

    with pytest.raises(UnavailableError, match="2 of 2 parts"):
        asyncio.run(lose_all())


def test_a_replica_that_dies_is_asked_for_once_more(store: Path) -> None:
    """Where another replica, or a quick replacement, answers, nobody notices."""

    async def die() -> Retrieved:
        retrievers, handles = await parts_of(store, 2)
        handles[0].failures = 1
        return await retrievers.search(queries(), [3] * 4, [None] * 4, with_memory=True)

    assert asyncio.run(die()).missing_shards == 0


def test_an_error_of_a_part_is_no_loss(store: Path) -> None:
    async def ask() -> None:
        retrievers, _ = await parts_of(store, 2, on_lost_shard="partial")
        await retrievers.search(queries(), [3] * 4, ["colour = 'red'"] * 4, with_memory=True)

    with pytest.raises(FilterError, match="colour"):
        asyncio.run(ask())


def test_another_models_store_is_refused(store: Path) -> None:
    async def start() -> None:
        config = settings(store)
        other = Fingerprint({"base": "b2"})
        await Retrievers([Handle(Retriever(config))], config, other).start()  # type: ignore[list-item]

    with pytest.raises(FingerprintMismatchError):
        asyncio.run(start())


def test_a_newer_version_is_taken_up_by_all_parts_at_once(
    store: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Appended documents are found, deleted ones are not, and every search is of one version."""
    more = tmp_path_factory.mktemp("more")
    memory = queries()[1].reshape(1, 2, 8).astype(np.float16)
    build_store(more, memory, metadata=[{"number": 99}], metadata_columns={"number": "int64"})

    async def change() -> list[tuple[int, list[str]]]:
        retrievers, handles = await parts_of(store, 3, store_refresh_s=0.02)
        pinned, _ = await parts_of(store, 3, store_refresh_s=0.02, store_version=1)
        seen: list[tuple[int, list[str]]] = []

        async def look(at: Retrievers = retrievers) -> None:
            found = await at.search(queries(), [2] * 4, ["number > 50"] * 4, with_memory=False)
            seen.append((found.store_version, [d.doc_id for d in found.documents[1]]))

        await look()
        best = seen[0][1][0]
        await asyncio.to_thread(delete, str(store), doc_ids=[best])
        await asyncio.to_thread(append_store, str(store), str(more), on_existing="replace")
        while retrievers.store.version < 3:
            await look()
            await asyncio.sleep(0)
        await look()
        await look(pinned)
        assert all("describe" in handle.calls for handle in handles)
        return seen

    seen = asyncio.run(change())
    (_, first), (version, last), (old, kept) = seen[0], seen[-2], seen[-1]
    assert version == 3
    assert last[0] == "doc-0"
    assert first[0] not in last
    assert (old, kept) == (1, first)
    assert {number for number, _ in seen} <= {1, 2, 3}
    for number, documents in seen:
        assert (first[0] in documents) is (number == 1)
