"""Workers that read a corpus. Apart from the compressor's, so that their processes start without torch."""

from __future__ import annotations

from dataclasses import dataclass

from clara_dist.data.corpus import CorpusUnit, UnitScan, read_unit, scan_unit
from clara_dist.data.documents import Reject


@dataclass(frozen=True)
class UnitWork:
    """One unit and the positions, among its documents, of those that stood earlier in the corpus."""

    unit: CorpusUnit
    duplicates: tuple[int, ...] = ()


class UnitScanner:
    """Reads a unit for its ids and its bad rows."""

    def __call__(self, unit: CorpusUnit) -> UnitScan:
        return scan_unit(unit)


class RejectLister:
    """Reads a unit for its rejects, the documents that stood earlier included."""

    def __call__(self, work: UnitWork) -> tuple[Reject, ...]:
        return tuple(item for item in read_unit(work.unit, work.duplicates) if isinstance(item, Reject))
