"""Finding doc_ids that occur twice, over all units of a corpus."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from clara_dist.data.corpus.read import Refuse, numbered_items
from clara_dist.data.corpus.units import CorpusUnit
from clara_dist.data.documents import Document, Reject
from clara_dist.data.streams import KeptFile
from clara_dist.store.passages import possible_parent


@dataclass(frozen=True)
class UnitScan:
    """What a unit holds, without the documents.

    Attributes:
        index: The unit's index.
        id_hashes: [n_documents, 2] uint64, a 128-bit hash of each doc_id: 16 bytes a document whatever its id, so
            the driver can hold those of 10^8 documents.
        rows: [n_documents] uint32, the row of each document, from 0; None if they are 0, 1, 2 and so on, as they are
            unless there are bad rows or blank lines.
        parent_hashes: [n, 2] uint64, the same of the documents whose passages some doc_ids here could name, see
            `require_distinct_names`; nearly always none.
        n_rejected: Bad rows.
        rejects: Their entries in the list of rejects.
    """

    index: int
    id_hashes: npt.NDArray[np.uint64]
    rows: npt.NDArray[np.uint32] | None
    parent_hashes: npt.NDArray[np.uint64]
    n_rejected: int
    rejects: bytes

    @property
    def n_documents(self) -> int:
        return len(self.id_hashes)

    def without_rejects(self) -> UnitScan:
        """The same with an empty list, for who keeps that elsewhere."""
        return replace(self, rejects=b"")

    def number(self, unit: CorpusUnit, ordinal: int) -> int:
        """Line, row or file of the unit's document ``ordinal``, as `CorpusUnit.place` takes it."""
        return unit.first_line + (ordinal if self.rows is None else int(self.rows[ordinal]))


@dataclass(frozen=True)
class UnitDuplicates:
    """The documents of one unit that lose to another of the same doc_id.

    Attributes:
        ordinals: [n] int64, ascending: their positions among the unit's documents, from 0.
        winner_units: [n] int64, the index of each winner's unit.
        winner_ordinals: [n] int64, each winner's position among that unit's documents.
    """

    ordinals: npt.NDArray[np.int64]
    winner_units: npt.NDArray[np.int64]
    winner_ordinals: npt.NDArray[np.int64]


def scan_unit(unit: CorpusUnit, *, refuse: Refuse | None = None, kept: KeptFile | None = None) -> UnitScan:
    """Read a unit for its doc_ids and its rejects; ``refuse`` and ``kept`` as in `read_unit`.

    Raises:
        DataError: As `read_unit`.
    """
    hashes, parents, rejects, n_rejected = bytearray(), bytearray(), bytearray(), 0
    rows = np.empty(max(unit.n_rows, 1), dtype=np.uint32)
    n_documents = 0
    for number, item in numbered_items(unit, refuse=refuse, kept=kept):
        if isinstance(item, Document):
            hashes += id_hash(item.doc_id)
            parent = possible_parent(item.doc_id)
            parents += id_hash(parent) if parent is not None else b""
            if n_documents == len(rows):  # a training row has several documents
                rows = np.concatenate([rows, np.empty_like(rows)])
            rows[n_documents] = number - unit.first_line
            n_documents += 1
        else:
            rejects += reject_line(item)
            n_rejected += 1
    rows = rows[:n_documents]
    gapless = bool((rows == np.arange(n_documents)).all())
    return UnitScan(
        index=unit.index,
        id_hashes=np.frombuffer(bytes(hashes), dtype="<u8").reshape(-1, 2),
        rows=None if gapless else rows.copy(),
        parent_hashes=np.frombuffer(bytes(parents), dtype="<u8").reshape(-1, 2),
        n_rejected=n_rejected,
        rejects=bytes(rejects),
    )


def id_hash(doc_id: str) -> bytes:
    """16 bytes that stand for a doc_id."""
    return hashlib.blake2b(doc_id.encode("utf-8"), digest_size=16).digest()


def reject_line(reject: Reject) -> bytes:
    """A reject's entry in the list of rejects, which is jsonl."""
    # A file's name need not be UTF-8.
    return json.dumps(asdict(reject), ensure_ascii=False).encode("utf-8", errors="backslashreplace") + b"\n"


def find_duplicates(scans: Sequence[UnitScan], keep: Literal["first", "last"] = "first") -> dict[int, UnitDuplicates]:
    """Which documents lose to another of the same doc_id.

    Takes 8 bytes a document beside the scans, and about 100 a document whose id occurs twice.

    Args:
        scans: One scan of every unit, in any order.
        keep: Which of equal ids wins, in the order of the corpus.

    Returns:
        Unit index -> its losers; units without any are left out.
    """
    scans = sorted(scans, key=lambda scan: scan.index)
    suspects = _repeated_prefixes(scans)
    if not len(suspects):
        return {}
    # All documents whose hash begins as another's does: few, so the rest is exact and may take memory.
    rows, units = [], []
    for position, scan in enumerate(scans):
        prefixes = scan.id_hashes[:, 0]
        nearest = suspects[np.minimum(np.searchsorted(suspects, prefixes), len(suspects) - 1)]
        rows.append(np.flatnonzero(nearest == prefixes))
        units.append(np.full(len(rows[-1]), position))
    hashes = np.concatenate([scan.id_hashes[found] for scan, found in zip(scans, rows, strict=True)])
    unit_of, row_of = np.concatenate(units), np.concatenate(rows)
    order = np.lexsort((hashes[:, 0], hashes[:, 1]))  # stable: equal ids stay in the order of the corpus
    ranked = hashes[order]
    starts = np.flatnonzero(np.append(True, (ranked[1:] != ranked[:-1]).any(axis=1)))
    sizes = np.diff(np.append(starts, len(order)))
    winners = order[starts if keep == "first" else starts + sizes - 1]
    winner_of = np.empty_like(order)
    winner_of[order] = np.repeat(winners, sizes)
    losers = np.flatnonzero(winner_of != np.arange(len(order)))
    indices = np.array([scan.index for scan in scans])
    found: dict[int, UnitDuplicates] = {}
    positions, firsts = np.unique(unit_of[losers], return_index=True)  # losers stand in the order of the units
    for position, mine in zip(positions.tolist(), np.split(losers, firsts)[1:], strict=True):
        winning = winner_of[mine]
        found[scans[position].index] = UnitDuplicates(row_of[mine], indices[unit_of[winning]], row_of[winning])
    return found


def _repeated_prefixes(scans: Sequence[UnitScan]) -> npt.NDArray[np.uint64]:
    """The first halves of hashes that occur twice, sorted."""
    if not scans:
        return np.empty(0, dtype=np.uint64)
    prefixes = np.concatenate([scan.id_hashes[:, 0] for scan in scans])
    prefixes.sort()  # in place
    return np.unique(prefixes[1:][prefixes[1:] == prefixes[:-1]])
