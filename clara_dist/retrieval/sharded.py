"""Exact search of a store that is divided among several searchers: ask all of them, merge what they find."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from clara_dist.errors import RetrievalError
from clara_dist.retrieval.search import ExactSearcher, SearchResult, merge_top_k
from clara_dist.store.part import open_part
from clara_dist.store.where import Filter


class PartSearcher:
    """Searches some shards of a store, and answers in rows of the whole store. What each search actor runs.

    Args:
        store: Directory or URL.
        version: Of the store.
        shards: Positions of the shards in its manifest, ascending.
        where: Only rows that this filter lets through, see `parse_where`; None: all.
        threads: torch threads of this process; None leaves them as they are.

    Raises:
        StoreError: There is no such store.
        FilterError: ``where`` cannot be read, or does not fit the store's columns.
    """

    def __init__(
        self,
        store: str,
        version: int,
        shards: Sequence[int],
        where: Filter | None = None,
        threads: int | None = None,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._part = open_part(store, version, shards)
        opened = self._part.store
        self._searcher = ExactSearcher(opened, None if where is None else opened.rows_where(where))

    def n_rows(self) -> int:
        """Number of rows that are searched."""
        return self._searcher.n_rows

    def search(self, query_BX: Tensor, k: int) -> SearchResult:
        """As `ExactSearcher.search`; all its rows where there are fewer than ``k``, so possibly none."""
        k = min(k, self._searcher.n_rows)
        if not k:
            empty = (len(query_BX), 0)
            return SearchResult(torch.empty(empty, dtype=torch.int64), torch.empty(empty))
        found = self._searcher.search(query_BX, k)
        return SearchResult(torch.from_numpy(self._part.whole_rows(found.rows_BK.numpy())), found.scores_BK)


class ShardedSearcher:
    """Finds exactly what `ExactSearcher` finds in the whole store: a score does not depend on the cut, nor do ties.

    Args:
        ask: Runs `PartSearcher.search` of every part on the same arguments, and returns all results, in any order. It
            raises if a part does not answer: a gap would be a wrong result.
        n_rows: Of all parts together.
        version: The version of the store that the parts hold.
    """

    def __init__(self, ask: Callable[[Tensor, int], Sequence[SearchResult]], n_rows: int, version: int) -> None:
        self.n_rows = n_rows
        self.version = version
        self._ask = ask

    def search(self, query_BX: Tensor, k: int) -> SearchResult:
        """As `ExactSearcher.search`.

        Raises:
            RetrievalError: As `ExactSearcher.search`.
        """
        if not 1 <= k <= self.n_rows:
            raise RetrievalError(
                f"cannot find {k} documents", got=f"k = {k}", expected=f"1 .. {self.n_rows} (all there are)"
            )
        return merge_top_k(self._ask(query_BX.detach().cpu(), k), k)
