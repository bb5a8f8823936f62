"""Finding doc_ids that occur twice, over all units of a corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clara_dist.data.corpus.read import Refuse, read_unit
from clara_dist.data.corpus.units import CorpusUnit
from clara_dist.data.documents import Document, Reject


@dataclass(frozen=True)
class UnitScan:
    """What a unit holds, without the documents.

    Attributes:
        index: The unit's index.
        id_hashes: [n_documents, 2] uint64, a 128-bit hash of each doc_id: 16 bytes a document whatever its id, so
            the driver can hold those of 10^8 documents.
        rejects: All bad rows.
    """

    index: int
    id_hashes: npt.NDArray[np.uint64]
    rejects: tuple[Reject, ...]

    @property
    def n_documents(self) -> int:
        return len(self.id_hashes)


def scan_unit(unit: CorpusUnit, *, refuse: Refuse | None = None) -> UnitScan:
    """Read a unit for its doc_ids and its rejects; ``refuse`` as in `read_unit`.

    Raises:
        DataError: As `read_unit`.
    """
    hashes, rejects = bytearray(), []
    for item in read_unit(unit, refuse=refuse):
        if isinstance(item, Document):
            hashes += hashlib.blake2b(item.doc_id.encode("utf-8"), digest_size=16).digest()
        else:
            rejects.append(item)
    id_hashes = np.frombuffer(bytes(hashes), dtype="<u8").reshape(-1, 2)
    return UnitScan(unit.index, id_hashes, tuple(rejects))


def duplicate_rows(scans: Sequence[UnitScan]) -> dict[int, npt.NDArray[np.int64]]:
    """Which documents have a doc_id that stands earlier in the corpus.

    Args:
        scans: One scan of every unit, in any order.

    Returns:
        Unit index -> sorted positions among the unit's documents, from 0; units without duplicates are left out.
        The first occurrence, in the order of the corpus, is never among them.
    """
    scans = sorted(scans, key=lambda scan: scan.index)
    if not scans:
        return {}
    hashes = np.concatenate([scan.id_hashes for scan in scans])
    order = np.lexsort((hashes[:, 0], hashes[:, 1]))  # stable: equal ids stay in the order of the corpus
    ranked = hashes[order]
    repeats = np.sort(order[1:][(ranked[1:] == ranked[:-1]).all(axis=1)])
    ends = np.cumsum([scan.n_documents for scan in scans])
    found: dict[int, Any] = {}
    for scan, end in zip(scans, ends.tolist(), strict=True):
        start = end - scan.n_documents
        low, high = np.searchsorted(repeats, (start, end))
        if high > low:
            found[scan.index] = repeats[low:high] - start
    return found
