"""The retriever deployment: a memory store, searched exactly or by its index; it loads no language model.

torch is imported where a replica starts: the process that only deploys does without it (300 MB and some seconds).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clara_dist.config.serve import ServeConfig
from clara_dist.errors import FingerprintMismatchError
from clara_dist.store.fingerprint import Fingerprint
from clara_dist.store.reader import MemoryStore, StoredDocument


@dataclass(frozen=True)
class ServedStore:
    """What an engine must know of the store that a retriever serves."""

    url: str
    fingerprint: Fingerprint
    version: int
    n_documents: int


@dataclass(frozen=True)
class Retrieved:
    """The best documents of B questions; question b has ``top_k[b]`` of them, and T = sum(top_k).

    Attributes:
        documents: Per question, best first.
        scores: Per question, cosines in the same order.
        memory_TMD: float16, memories of all questions' documents, row-major; None if not asked for.
    """

    documents: list[list[StoredDocument]]
    scores: list[list[float]]
    memory_TMD: np.ndarray | None


class Retriever:
    """Answers searches over one version of one store. A plain class: Serve wraps it in `serve_app`."""

    def __init__(self, config: ServeConfig) -> None:
        import torch

        from clara_dist.retrieval.index import open_searcher

        torch.set_num_threads(config.threads)
        self._store = MemoryStore.open(config.store, config.store_version)
        self._searcher = open_searcher(self._store, config.index)
        self._served = ServedStore(
            url=config.store,
            fingerprint=self._store.fingerprint,
            version=self._store.version,
            n_documents=self._store.n_documents,
        )

    def describe(self) -> ServedStore:
        return self._served

    def search(self, query_BX: np.ndarray, top_k: Sequence[int], *, fingerprint: str, with_memory: bool) -> Retrieved:
        """The ``top_k[b]`` best documents of each query, in one scan of the store.

        Args:
            query_BX: float32 query vectors.
            top_k: Documents per query, each at most the store's number of documents.
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
        # A row's top k is a prefix of its top max(k): one search serves them all.
        found = self._searcher.search(query_BX, max(top_k))
        rows_T = np.concatenate([rows_K[:k] for rows_K, k in zip(found.rows_BK.numpy(), top_k, strict=True)])
        documents = iter(self._store.documents(rows_T))
        return Retrieved(
            documents=[[next(documents) for _ in range(k)] for k in top_k],
            scores=[scores_K[:k].tolist() for scores_K, k in zip(found.scores_BK, top_k, strict=True)],
            memory_TMD=self._store.take_memory(rows_T) if with_memory else None,
        )
