"""Exact search: every memory is compared with every query.

The scan (`clara_dist.retrieval.scan`) is a sieve. It runs in fp32 at the speed of the memory, and only decides which
rows may still be among the best k; the scores of those few rows are then computed in float64. So a score is the cosine
rounded once to fp32: the same number however a store is cut into shards, chunks, subsets or batches of queries, and
equal memories tie.
"""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from clara_dist.errors import CorruptStoreError, RetrievalError
from clara_dist.retrieval.kernel import half_dots
from clara_dist.retrieval.scan import Products, products_with
from clara_dist.store.reader import MemoryStore
from clara_dist.store.shard import Shard

# Scores of a chunk, at most.
_CHUNK_SCORES = 4 << 20
# Widened to float64, this still fits into the caches.
_RESCORE_CHUNK_BYTES = 4 << 20
# So many chunks for each thread end at about the same time.
_CHUNKS_PER_THREAD = 8
# Rows whose score is this near to the k-th best, and twice the rounding of the queries, are scored again. It must be at
# least twice the error of an fp32 product: 2.4e-6 at worst at X = 65,536 (all values positive, one query); a larger one
# costs a few more rows.
_SIEVE_MARGIN = 5e-5


@dataclass(frozen=True)
class SearchResult:
    """The best rows of B queries, best first; of equal scores the lowest row comes first.

    Attributes:
        rows_BK: int64 row numbers of the store, on the CPU.
        scores_BK: float32 cosines, on the CPU.
    """

    rows_BK: Tensor
    scores_BK: Tensor


class Searcher(Protocol):
    """What training asks: a store or a part of it, searched here or elsewhere."""

    @property
    def n_rows(self) -> int:
        """Number of rows that are searched."""

    def search(self, query_BX: Tensor, k: int) -> SearchResult:
        """The k best rows of each query, rows of the whole store, best first."""


def merge_top_k(results: Sequence[SearchResult], k: int) -> SearchResult:
    """Best k of several results, such as those of searchers over disjoint rows of one store.

    Raises:
        RetrievalError: The results hold fewer than k rows.
    """
    rows = torch.cat([result.rows_BK for result in results], dim=1)
    scores = torch.cat([result.scores_BK for result in results], dim=1)
    if not 1 <= k <= rows.shape[1]:
        raise RetrievalError(
            "cannot merge the best k of these results", got=f"k = {k}", expected=f"1 .. {rows.shape[1]}"
        )
    by_row = rows.argsort(dim=1)
    by_score = scores.gather(1, by_row).argsort(dim=1, descending=True, stable=True)[:, :k]
    order = by_row.gather(1, by_score)
    return SearchResult(rows.gather(1, order), scores.gather(1, order))


class ExactSearcher:
    """Cosine search with recall 1 over a store or a part of it. Picklable; safe to use from several threads.

    Args:
        store: The store. An empty one is legal, but cannot be searched.
        rows: Search these rows only, such as `MemoryStore.rows_where` gives; None means all.
        device: Where the products are computed. Memories are streamed to it, never kept there.

    Raises:
        RetrievalError: A row is outside the store.
    """

    def __init__(self, store: MemoryStore, rows: np.ndarray | None = None, device: torch.device | str = "cpu") -> None:
        self.store = store
        self.device = torch.device(device)
        if self.device.type == "cpu":
            half_dots()  # no search shall wait for its compilation
        self._rows = None if rows is None else _ascending(np.asarray(rows, np.int64))
        if self._rows is not None and len(self._rows) and (self._rows[0] < 0 or self._rows[-1] >= store.n_documents):
            raise RetrievalError(
                f"the rows to search are not all in the store {store.url}",
                got=f"rows {self._rows[0]} .. {self._rows[-1]}",
                expected=f"0 .. {store.n_documents - 1}",
            )

    @property
    def n_rows(self) -> int:
        """Number of rows that are searched."""
        return self.store.n_documents if self._rows is None else len(self._rows)

    @property
    def _n_threads(self) -> int:
        """A GPU works on one chunk at a time; CPU threads each on one of their own."""
        return torch.get_num_threads() if self.device.type == "cpu" else 1

    @property
    def _pool(self) -> ThreadPoolExecutor:
        return _threads(self._n_threads, os.getpid())

    def search(self, query_BX: Tensor | np.ndarray, k: int) -> SearchResult:
        """Find the k memories with the highest cosine.

        Args:
            query_BX: Queries of any float type, on any device; trailing dimensions are flattened, so [B, M, D] will do.
            k: Rows per query, at most `n_rows`.

        Returns:
            Exact results, without gradient. A memory that is all zeros scores 0.

        Raises:
            RetrievalError: k is out of range, the store is empty, or a query has the wrong size, is all zeros or is not
                finite.
            CorruptStoreError: A memory or a norm of the store is not finite.
        """
        if not self.n_rows:
            raise RetrievalError("there is nothing to search: the store, or what its filter leaves, is empty")
        if not 1 <= k <= self.n_rows:
            raise RetrievalError(
                f"cannot find {k} documents", got=f"k = {k}", expected=f"1 .. {self.n_rows} (all there are)"
            )
        with torch.no_grad():
            query_BX = self._unit_queries(query_BX)
            products = products_with(query_BX)
            margin = _SIEVE_MARGIN + 2 * products.rounding
            while True:
                rows_F, scores_BF, near_BF = self._sieve(products, len(query_BX), k, margin)
                exact_BF = self._exact(query_BX.cpu().numpy(), rows_F, near_BF)
                error = float(np.abs(scores_BF[near_BF] - exact_BF[near_BF]).max())
                if 2 * error <= margin:
                    rows_BF = torch.from_numpy(rows_F).expand(len(query_BX), -1)
                    return merge_top_k([SearchResult(rows_BF, torch.from_numpy(exact_BF))], k)
                # The program lets torch multiply in TF32 or bfloat16: the scan is coarser than fp32, so keep more rows.
                margin = 4 * error

    def _sieve(
        self, products: Products, n_queries: int, k: int, margin: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows whose scores are within the margin of a query's k-th best; their scores_BF; of which query, near_BF."""
        rows_F, scores_BF = np.empty(0, np.int64), np.empty((n_queries, 0), np.float32)
        least_B1 = np.full((n_queries, 1), -np.inf, np.float32)
        for rows_C, scores_BC in self._scan(products, n_queries):
            near_C = (scores_BC >= least_B1).any(axis=0)
            if near_C.any():
                rows_F = np.concatenate([rows_F, rows_C[near_C]])
                scores_BF = np.concatenate([scores_BF, scores_BC[:, near_C]], axis=1)
                if len(rows_F) >= k:
                    least_B1 = np.partition(scores_BF, -k, axis=1)[:, -k, None] - np.float32(margin)
                    near_F = (scores_BF >= least_B1).any(axis=0)
                    rows_F, scores_BF = rows_F[near_F], scores_BF[:, near_F]
        return rows_F, scores_BF, scores_BF >= least_B1

    def _unit_queries(self, query: Tensor | np.ndarray) -> Tensor:
        """Queries as float64 vectors of length 1 on the device."""
        query = torch.as_tensor(query).detach().to(self.device, torch.float64)
        size = self.store.n_memory_tokens * self.store.hidden_size
        if query.ndim < 2 or not len(query) or query[0].numel() != size:
            raise RetrievalError(
                "the queries do not have the size of the store's memories",
                got=f"shape {tuple(query.shape)}",
                expected=f"[B, {size}] or [B, {self.store.n_memory_tokens}, {self.store.hidden_size}], B >= 1",
                hint="use the model that wrote the store",
            )
        query_BX = query.flatten(1)
        norm_B1 = query_BX.norm(dim=1, keepdim=True)
        bad_B = ~(norm_B1[:, 0].isfinite() & (norm_B1[:, 0] > 0))
        if bad_B.any():
            raise RetrievalError(
                f"query {int(bad_B.nonzero()[0])} has no direction", got="zeros, NaN or infinite values"
            )
        return query_BX / norm_B1

    def _scan(self, products: Products, n_queries: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Score all rows in fp32: chunks of (row numbers; scores_BC), in the order of the rows."""
        pending: deque[Future[tuple[np.ndarray, np.ndarray]]] = deque()
        for shard, local_C in self._chunks(products, n_queries):
            # Never more scores at a time than a few chunks have, however large the store.
            if len(pending) > 2 * self._n_threads:
                yield pending.popleft().result()
            pending.append(self._pool.submit(self._scores, shard, local_C, products))
        while pending:
            yield pending.popleft().result()

    def _chunks(self, products: Products, n_queries: int) -> Iterator[tuple[Shard, np.ndarray]]:
        """Shards and some of their searched rows."""
        row_bytes = 2 * self.store.n_memory_tokens * self.store.hidden_size
        share = -(-self.n_rows // (_CHUNKS_PER_THREAD * self._n_threads))
        low, high = (max(1, n_bytes // row_bytes) for n_bytes in products.chunk_bytes)
        chunk = max(1, min(max(low, min(high, share)), _CHUNK_SCORES // n_queries))
        for shard in self.store.shards:
            local = self._local_rows(shard)
            for start in range(0, len(local), chunk):
                yield shard, local[start : start + chunk]

    def _scores(self, shard: Shard, local_C: np.ndarray, products: Products) -> tuple[np.ndarray, np.ndarray]:
        """Some rows: their numbers, counted from the shard's first before and from the store's after, and scores_BC."""
        positions_C = shard.positions(local_C)
        products_CB = _products_of(shard.memory_SMD.reshape(len(shard.memory_SMD), -1), positions_C, products)
        norms_C = shard.norms_S[positions_C]
        # A memory that is all zeros scores 0 instead of NaN.
        scores_CB = products_CB / np.where(norms_C == 0, np.float32(1), norms_C)[:, None]
        if not np.isfinite(scores_CB).all():
            raise CorruptStoreError(
                f"the shard {shard.info.file} of the store {self.store.url} has values that are not finite",
                hint="run `clara-dist store verify`, then compress its documents again",
            )
        return shard.row_offset + local_C, scores_CB.T

    def _local_rows(self, shard: Shard) -> np.ndarray:
        """The searched rows of a shard, counted from its first."""
        if self._rows is None:
            return np.arange(shard.rows)
        low, high = np.searchsorted(self._rows, (shard.row_offset, shard.row_offset + shard.rows))
        return self._rows[low:high] - shard.row_offset

    def _exact(self, query_BX: np.ndarray, rows_F: np.ndarray, near_BF: np.ndarray) -> np.ndarray:
        """Cosines_BF where ``near_BF`` says so, computed in float64 and rounded to float32; elsewhere -inf."""
        chunk = max(1, _RESCORE_CHUNK_BYTES // (8 * query_BX.shape[1]))
        starts = range(0, len(rows_F), chunk)
        parts = self._pool.map(
            lambda low: self._exact_chunk(query_BX, rows_F[low : low + chunk], near_BF[:, low : low + chunk]), starts
        )
        return np.concatenate(list(parts), axis=1)

    def _exact_chunk(self, query_BX: np.ndarray, rows_C: np.ndarray, near_BC: np.ndarray) -> np.ndarray:
        # einsum, neither torch nor a BLAS: their threads go on spinning for a while, on the processors that the next
        # search wants (a sixth of its time), and a BLAS sums a row in an order that depends on the other rows.
        memory_CX = self.store.take_memory(rows_C).reshape(len(rows_C), -1).astype(np.float64)
        norms_C = np.sqrt(np.einsum("cx,cx->c", memory_CX, memory_CX))
        norms_C[norms_C == 0] = 1  # a memory that is all zeros scores 0
        scores_BC = np.full(near_BC.shape, -np.inf, np.float32)
        for query_X, near_C, scores_C in zip(query_BX, near_BC, scores_BC, strict=True):
            some_CX = memory_CX if near_C.all() else memory_CX[near_C]
            scores_C[near_C] = np.einsum("cx,x->c", some_CX, query_X) / norms_C[near_C]
        return scores_BC


@functools.cache
def _threads(n_threads: int, process_id: int) -> ThreadPoolExecutor:
    """All searches of a process share its threads: several at a time do not fight for the processors.

    ``process_id`` is a part of the key because a forked process has the pool, but not its threads.
    """
    return ThreadPoolExecutor(n_threads, "clara-scan")


def _ascending(rows: np.ndarray) -> np.ndarray:
    """Rows in order, each once. A filter's already are: sorting a million of them would take 0.6 s a search."""
    return rows if (rows[1:] > rows[:-1]).all() else np.unique(rows)


def _products_of(memory_SX: np.ndarray, rows_C: np.ndarray, products: Products) -> np.ndarray:
    """Products of some rows, ascending; products_CB."""
    first, span = rows_C[0], rows_C[-1] - rows_C[0] + 1
    if span == len(rows_C):
        return products(memory_SX[first : first + span])
    if span <= 2 * len(rows_C):
        # Reading a few rows in vain is cheaper than a copy of the others.
        return products(memory_SX[first : first + span])[rows_C - first]
    return products(memory_SX[rows_C])
