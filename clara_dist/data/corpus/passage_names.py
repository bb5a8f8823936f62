"""Documents that are named as the passages of another one would be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from clara_dist.data.corpus.read import read_unit
from clara_dist.data.corpus.scan import UnitScan, id_hash
from clara_dist.data.corpus.units import CorpusUnit
from clara_dist.data.documents import Document
from clara_dist.errors import DataError
from clara_dist.store.passages import possible_parent


def require_distinct_names(units: Sequence[CorpusUnit], scans: Sequence[UnitScan]) -> None:
    """Refuse a corpus in which a document ``a#1`` stands beside a document ``a``.

    If ``a`` is split, its first passage gets that name; whether it is split is only known once it is compressed.

    Args:
        units: The corpus.
        scans: One scan of every unit.

    Raises:
        DataError: There is such a pair.
    """
    wanted = np.unique(np.concatenate([scan.parent_hashes for scan in scans]), axis=0)
    if not len(wanted):
        return
    taken = {pair for scan in scans for pair in _present(wanted, scan.id_hashes)}
    for unit, scan in zip(units, sorted(scans, key=lambda scan: scan.index), strict=True):
        if taken.isdisjoint(map(tuple, scan.parent_hashes.tolist())):
            continue
        for item in read_unit(unit):
            parent = possible_parent(item.doc_id) if isinstance(item, Document) else None
            if parent is not None and tuple(np.frombuffer(id_hash(parent), "<u8").tolist()) in taken:
                raise DataError(
                    "a document has the name of a passage of another one",
                    got=f"{item.doc_id!r} in {unit.path}, beside {parent!r}",
                    hint="name one of them otherwise, or let long_documents=truncate cut documents, not split them",
                )


def _present(wanted: npt.NDArray[np.uint64], hashes: npt.NDArray[np.uint64]) -> list[tuple[int, ...]]:
    """Which of the wanted hashes (sorted by their first halves) are there."""
    nearest = wanted[np.minimum(np.searchsorted(wanted[:, 0], hashes[:, 0]), len(wanted) - 1)]
    alike = hashes[nearest[:, 0] == hashes[:, 0]]
    there = set(map(tuple, wanted.tolist()))
    return [pair for pair in map(tuple, alike.tolist()) if pair in there]
