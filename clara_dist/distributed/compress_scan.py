"""Workers that read a corpus. Apart from the compressor's, so that their processes start without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clara_dist.data.corpus import CorpusUnit, UnitScan, read_unit, reject_line, scan_unit
from clara_dist.data.documents import Document, Reject
from clara_dist.data.streams import KeptFile
from clara_dist.store.schema import is_metadata_value


@dataclass(frozen=True)
class UnitWork:
    """One unit and the positions, among its documents, of those that lose to another of the same doc_id."""

    unit: CorpusUnit
    duplicates: tuple[int, ...] = ()


@dataclass(frozen=True)
class DuplicateWork:
    """One unit, its losers, and the place of each one's winner."""

    unit: CorpusUnit
    losers: tuple[int, ...]
    winners: tuple[str, ...]


@dataclass(frozen=True)
class Listing:
    """The rejects of one unit as entries of their list, and the first few losers in words."""

    lines: bytes
    examples: tuple[str, ...]


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
        self.kept = KeptFile()

    def __call__(self, unit: CorpusUnit) -> UnitScan:
        return scan_unit(unit, refuse=self.refuse, kept=self.kept)


class RejectLister:
    """Reads a unit for its rejects, the documents that lose to others included."""

    def __init__(self, refuse: MetadataCheck, n_examples: int) -> None:
        self.refuse = refuse
        self.n_examples = n_examples
        self.kept = KeptFile()

    def __call__(self, work: DuplicateWork) -> Listing:
        lines = bytearray()
        examples: list[str] = []
        for item in read_unit(work.unit, work.losers, winners=work.winners, refuse=self.refuse, kept=self.kept):
            if isinstance(item, Reject):
                lines += reject_line(item)
                if item.duplicate_of and not item.repeated and len(examples) < self.n_examples:
                    examples.append(f"{item.doc_id!r} in {item.path}:{item.line} and {item.duplicate_of}")
        return Listing(bytes(lines), tuple(examples))
