"""From ``doc_id`` to row number, for millions of documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa


class IdIndex:
    """An index of 16 bytes a document, against about 130 of a dict of strings: the ids themselves stay in the shards.

    Rows are found by Python's own 64-bit string hash (the index lives in one process, so its salt does not matter) and
    then compared by their real ids, so that a hash collision costs a comparison and never a wrong row.
    """

    def __init__(self, chunks: Iterable[pa.StringArray], ids_at: Callable[[np.ndarray], list[str]]) -> None:
        """Build the index.

        Args:
            chunks: The ids of rows 0, 1, ... in pieces.
            ids_at: Reads the ids of the given rows.
        """
        hashes = [_hashes(chunk.to_pylist()) for chunk in chunks]
        unordered = np.concatenate(hashes) if hashes else np.empty(0, np.int64)
        self._rows = np.argsort(unordered, kind="stable")
        self._hashes = unordered[self._rows]
        self._ids_at = ids_at

    def rows_of(self, doc_ids: Sequence[str]) -> np.ndarray:
        """Rows of ``doc_ids``, int64; -1 where an id is absent."""
        found = np.full(len(doc_ids), -1, np.int64)
        wanted = _hashes(doc_ids)
        slots = np.searchsorted(self._hashes, wanted)
        open_ = np.arange(len(doc_ids))
        while True:
            open_ = open_[slots[open_] < len(self._hashes)]
            open_ = open_[self._hashes[slots[open_]] == wanted[open_]]
            if not len(open_):
                return found
            rows = self._rows[slots[open_]]
            same = np.fromiter(
                (a == doc_ids[i] for a, i in zip(self._ids_at(rows), open_, strict=True)), np.bool_, len(open_)
            )
            found[open_[same]] = rows[same]
            # What is left met another id of the same hash: look at the next slot.
            open_ = open_[~same]
            slots[open_] += 1


def _hashes(doc_ids: Sequence[str]) -> np.ndarray:
    return np.fromiter(map(hash, doc_ids), np.int64, len(doc_ids))
