"""Workers that read a corpus. Apart from the compressor's, so that their processes start without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clara_dist.data.corpus import CorpusUnit, UnitScan, read_unit, scan_unit
from clara_dist.data.documents import Document, Reject
from clara_dist.store.schema import is_metadata_value


@dataclass(frozen=True)
class UnitWork:
    """One unit and the positions, among its documents, of those that stood earlier in the corpus."""

    unit: CorpusUnit
    duplicates: tuple[int, ...] = ()


@dataclass(frozen=True)
class MetadataCheck:
    """Refuses documents whose metadata does not fit the store's typed columns; a missing key is fine."""

    columns: Mapping[str, str]

    def __call__(self, document: Document) -> str | None:
        for name, kind in self.columns.items():
            value = document.metadata.get(name)
            if value is not None and not is_metadata_value(value, kind):
                return f"metadata {name!r} is no {kind}"
        return None


class UnitScanner:
    """Reads a unit for its ids and its bad rows."""

    def __init__(self, refuse: MetadataCheck) -> None:
        self.refuse = refuse

    def __call__(self, unit: CorpusUnit) -> UnitScan:
        return scan_unit(unit, refuse=self.refuse)


class RejectLister:
    """Reads a unit for its rejects, the documents that stood earlier included."""

    def __init__(self, refuse: MetadataCheck) -> None:
        self.refuse = refuse

    def __call__(self, work: UnitWork) -> tuple[Reject, ...]:
        items = read_unit(work.unit, work.duplicates, refuse=self.refuse)
        return tuple(item for item in items if isinstance(item, Reject))
