"""The retriever deployment: a memory store, searched exactly or by its index; it loads no language model.

torch is imported where a replica starts: the process that only deploys does without it (300 MB and some seconds).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clara_dist.config.serve import ServeConfig
from clara_dist.distributed.serve_gauges import RetrieverMetrics
from clara_dist.errors import FingerprintMismatchError
from clara_dist.store.cache import cache_counts
from clara_dist.store.fingerprint import Fingerprint
from clara_dist.store.reader import MemoryStore, StoredDocument
from clara_dist.store.schema import StoreSchema

if TYPE_CHECKING:
    from clara_dist.retrieval.search import ExactSearcher


@dataclass(frozen=True)
class ServedStore:
    """What an engine must know of the store that a retriever serves."""

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
        memory_TMD: float16, memories of all questions' documents, row-major; None if not asked for.
        store_version: That this replica serves: one that started later may have found a newer one.
    """

    documents: list[list[StoredDocument]]
    scores: list[list[float]]
    memory_TMD: np.ndarray | None
    store_version: int


class Retriever:
    """Answers searches over one version of one store. A plain class: Serve wraps it in `serve_app`."""

    def __init__(self, config: ServeConfig) -> None:
        import torch

        from clara_dist.retrieval.index import open_searcher

        torch.set_num_threads(config.threads)
        self._metrics = RetrieverMetrics()
        self._store = MemoryStore.open(config.store, config.store_version)
        self._searcher = open_searcher(self._store, config.index)
        self._served = ServedStore(
            url=config.store,
            fingerprint=self._store.fingerprint,
            version=self._store.version,
            n_documents=self._store.n_documents,
            schema=self._store.manifest.schema,
        )

    def describe(self) -> ServedStore:
        return self._served

    def search(
        self,
        query_BX: np.ndarray,
        top_k: Sequence[int],
        where: Sequence[str | None],
        *,
        fingerprint: str,
        with_memory: bool,
    ) -> Retrieved:
        """The ``top_k[b]`` best documents of each query that pass its filter, in one scan for each distinct filter.

        Args:
            query_BX: float32 query vectors.
            top_k: Documents per query, each at most the store's number of documents.
            where: Per query, which documents it may find; None: all.
            fingerprint: Digest of the fingerprint that the queries' model expects.
            with_memory: Whether to return the memories.

        Raises:
            FingerprintMismatchError: The store under this replica is not the one that the engine was matched with.
        """
        own = self._served.fingerprint.digest
        if fingerprint != own:
            raise FingerprintMismatchError(
                "the retriever's store was replaced by another model's",
                got=f"fingerprint {own}",
                expected=fingerprint,
                hint="deploy engine and retriever together",
            )
        rows: list[np.ndarray] = [np.empty(0, np.int64)] * len(top_k)
        scores: list[list[float]] = [[]] * len(top_k)
        for each in dict.fromkeys(where):
            members = [b for b, other in enumerate(where) if other == each]
            searcher = self._searcher if each is None else self._filtered(each)
            # A query's top k is a prefix of its top max(k): one search serves them all.
            most = min(max(top_k[b] for b in members), searcher.n_rows)
            if not most:
                continue
            found = searcher.search(query_BX[members], most)
            for b, rows_K, scores_K in zip(members, found.rows_BK.numpy(), found.scores_BK.tolist(), strict=True):
                rows[b], scores[b] = rows_K[: top_k[b]], scores_K[: top_k[b]]
        rows_T = np.concatenate(rows)
        documents = iter(self._store.documents(rows_T))
        return Retrieved(
            documents=[[next(documents) for _ in rows_K] for rows_K in rows],
            scores=scores,
            memory_TMD=self._store.take_memory(rows_T) if with_memory else None,
            store_version=self._store.version,
        )

    def check_health(self) -> None:
        """Serve's probe, and the moment to say what the cache did."""
        self._metrics.observe(cache_counts())

    def _filtered(self, where: str) -> ExactSearcher:
        from clara_dist.retrieval.search import ExactSearcher

        return ExactSearcher(self._store, self._store.rows_where(where))
