"""The retriever deployment: a part of a memory store, searched exactly or by its index; it loads no language model.

torch is imported where a replica starts: the process that only deploys does without it (300 MB and some seconds).
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clara_dist.config.serve import ServeConfig
from clara_dist.distributed.serve_gauges import RetrieverMetrics
from clara_dist.errors import FingerprintMismatchError
from clara_dist.store.cache import cache_counts
from clara_dist.store.fingerprint import Fingerprint
from clara_dist.store.manifest import read_manifest
from clara_dist.store.part import StorePart, open_part, share_shards
from clara_dist.store.reader import StoredDocument
from clara_dist.store.schema import StoreSchema
from clara_dist.store.storage import open_storage

if TYPE_CHECKING:
    from clara_dist.retrieval.index import IndexedSearcher
    from clara_dist.retrieval.search import ExactSearcher

# Versions that are open at once: the one that is served, and the one that it is changed for.
_OPEN_VERSIONS = 2


@dataclass(frozen=True)
class ServedStore:
    """What an engine must know of one version of the store, all of its parts together."""

    url: str
    fingerprint: Fingerprint
    version: int
    n_documents: int
    schema: StoreSchema


@dataclass(frozen=True)
class Retrieved:
    """The best documents of B questions, T in all: ``top_k[b]`` of question b, or as many as its filter leaves.

    Attributes:
        documents: Per question, best first.
        scores: Per question, cosines in the same order.
        rows: Per question, int64 rows of the whole store in the same order: they decide between equal scores.
        memory_TMD: float16, memories of all questions' documents, row-major; None if not asked for.
        store_version: That was searched.
        missing_shards: Parts of the store that did not answer: what they hold was not searched.
    """

    documents: list[list[StoredDocument]]
    scores: list[list[float]]
    rows: list[np.ndarray]
    memory_TMD: np.ndarray | None
    store_version: int
    missing_shards: int = 0


@dataclass(frozen=True)
class _Opened:
    """A version under this replica."""

    whole: ServedStore
    part: StorePart
    searcher: ExactSearcher | IndexedSearcher


class Retriever:
    """Answers searches over one part of a store. A plain class: Serve wraps it in `serve_app`.

    Which version is searched is said by who asks, so that all parts of one search are of the same version; the last
    ones asked for stay open.

    Args:
        config: What is served; ``retriever_shards`` of it says how many parts there are.
        shard: Which of them this is, counted from 0.

    Raises:
        StoreError: There is no such store or version.
        RetrievalError: ``index`` is required, and the version has none.
    """

    def __init__(self, config: ServeConfig, shard: int = 0) -> None:
        import torch

        torch.set_num_threads(config.threads)
        self._metrics = RetrieverMetrics()
        self._config = config
        self._shard = shard
        self._open_versions: OrderedDict[int, _Opened] = OrderedDict()
        self._opening = threading.Lock()
        self._open(self._newest())

    async def newest(self) -> int:
        """The store's newest version, or the one that the configuration names."""
        return await asyncio.to_thread(self._newest)

    async def describe(self, version: int | None = None) -> ServedStore:
        """Open a version, None being the newest, and say what it is.

        Raises:
            StoreError: There is no such version, or it is damaged.
        """
        return (await asyncio.to_thread(self._open, version)).whole

    async def search(
        self,
        query_BX: np.ndarray,
        top_k: Sequence[int],
        where: Sequence[str | None],
        *,
        version: int,
        fingerprint: str,
        with_memory: bool,
    ) -> Retrieved:
        """The ``top_k[b]`` best documents of each query that pass its filter, in one scan for each distinct filter.

        Args:
            query_BX: float32 query vectors.
            top_k: Documents per query; all of them where the part has fewer.
            where: Per query, which documents it may find; None: all.
            version: Of the store.
            fingerprint: Digest of the fingerprint that the queries' model expects.
            with_memory: Whether to return the memories.

        Raises:
            FingerprintMismatchError: The store under this replica is not the one that the engine was matched with.
            StoreError: There is no such version any more.
        """
        # In a thread: the replica goes on answering Serve's probes, and other searches.
        return await asyncio.to_thread(self._search, query_BX, top_k, where, version, fingerprint, with_memory)

    def _search(
        self,
        query_BX: np.ndarray,
        top_k: Sequence[int],
        where: Sequence[str | None],
        version: int,
        fingerprint: str,
        with_memory: bool,
    ) -> Retrieved:
        opened = self._open(version)
        own = opened.whole.fingerprint.digest
        if fingerprint != own:
            raise FingerprintMismatchError(
                "the retriever's store was replaced by another model's",
                got=f"fingerprint {own}",
                expected=fingerprint,
                hint="deploy engine and retriever together",
            )
        store = opened.part.store
        rows: list[np.ndarray] = [np.empty(0, np.int64)] * len(top_k)
        scores: list[list[float]] = [[]] * len(top_k)
        for each in dict.fromkeys(where):
            members = [b for b, other in enumerate(where) if other == each]
            searcher = opened.searcher if each is None else _filtered(opened, each)
            # A query's top k is a prefix of its top max(k): one search serves them all.
            most = min(max(top_k[b] for b in members), searcher.n_rows)
            if not most:
                continue
            found = searcher.search(query_BX[members], most)
            for b, rows_K, scores_K in zip(members, found.rows_BK.numpy(), found.scores_BK.tolist(), strict=True):
                rows[b], scores[b] = rows_K[: top_k[b]], scores_K[: top_k[b]]
        rows_T = np.concatenate(rows)
        documents = iter(store.documents(rows_T))
        return Retrieved(
            documents=[[next(documents) for _ in rows_K] for rows_K in rows],
            scores=scores,
            rows=[opened.part.whole_rows(rows_K) for rows_K in rows],
            memory_TMD=store.take_memory(rows_T) if with_memory else None,
            store_version=store.version,
        )

    def check_health(self) -> None:
        """Serve's probe, and the moment to say what the cache did."""
        self._metrics.observe(cache_counts())

    def _newest(self) -> int:
        if self._config.store_version is not None:
            return self._config.store_version
        return read_manifest(open_storage(self._config.store)).version

    def _open(self, version: int | None) -> _Opened:
        if version is None:
            version = self._newest()
        opened = self._open_versions.get(version)
        if opened is not None:
            return opened
        with self._opening:
            if version not in self._open_versions:
                self._open_versions[version] = self._open_part(version)
                while len(self._open_versions) > _OPEN_VERSIONS:
                    self._open_versions.popitem(last=False)  # searches that still use it keep it open
            return self._open_versions[version]

    def _open_part(self, version: int) -> _Opened:
        from clara_dist.retrieval.index import open_searcher

        config = self._config
        version, parts = share_shards(config.store, version, config.retriever_shards)
        part = open_part(config.store, version, parts[self._shard] if self._shard < len(parts) else [])
        manifest = read_manifest(open_storage(config.store), version)
        whole = ServedStore(config.store, manifest.fingerprint, version, manifest.n_documents, manifest.schema)
        return _Opened(whole, part, open_searcher(part.store, config.index))


def _filtered(opened: _Opened, where: str) -> ExactSearcher:
    from clara_dist.retrieval.search import ExactSearcher

    return ExactSearcher(opened.part.store, opened.part.store.rows_where(where))
