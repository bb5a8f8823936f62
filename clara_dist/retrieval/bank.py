"""The memories that training reads: by row, and by search."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from clara_dist.retrieval.search import ExactSearcher, Searcher
from clara_dist.store.reader import MemoryStore
from clara_dist.store.where import Filter


class MemoryBank:
    """A store as tensors.

    The compressor is frozen where this is used, so memories carry no gradient and never go stale.

    Args:
        store: The store.
        where: Searches find only rows that this filter lets through, see `parse_where`; None: all rows.
        dtype: Type of the gathered memories; fp16 values are exact in fp32.
        device: Where they go.
        searcher: Searches the store in place of this process; it has ``where`` already.

    Raises:
        FilterError: ``where`` cannot be read, or does not fit the store's columns.
    """

    def __init__(
        self,
        store: MemoryStore,
        where: Filter | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        searcher: Searcher | None = None,
    ) -> None:
        self.store = store
        self.dtype = dtype
        self.device = torch.device(device)
        self._searcher = searcher or ExactSearcher(store, None if where is None else store.rows_where(where), device)

    @property
    def n_searched(self) -> int:
        """Number of rows that searches choose from."""
        return self._searcher.n_rows

    def gather(self, rows_BN: Tensor | np.ndarray) -> Tensor:
        """Memories of the given rows.

        Args:
            rows_BN: int64 rows, of any shape; -1 is padding.

        Returns:
            memory_BNMD on the bank's device; zeros where the row is -1.

        Raises:
            StoreError: A row is neither -1 nor in the store.
        """
        rows = torch.as_tensor(rows_BN).cpu().numpy()
        padding = rows == -1
        # One copy from the mapped pages; they travel to the device in half precision.
        memory = self.store.take_memory(np.where(padding, 0, rows))
        memory[padding] = 0
        return torch.from_numpy(memory).to(self.device).to(self.dtype)

    def search(self, query_BX: Tensor, n: int) -> Tensor:
        """Rows of the n nearest memories of each query, best first.

        Args:
            query_BX: Queries; no gradient flows to them.
            n: At most the number of rows that ``where`` leaves.

        Returns:
            rows_BN, int64, on the bank's device.

        Raises:
            RetrievalError: As `ExactSearcher.search`.
        """
        return self._searcher.search(query_BX, n).rows_BK.to(self.device)

    def rows_of(self, doc_ids: Sequence[str]) -> list[np.ndarray]:
        """All rows of each document, one or its passages, whether ``where`` holds or not; none that the store lacks."""
        return self.store.rows_of_documents(doc_ids)
