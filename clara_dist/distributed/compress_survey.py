"""The driver's look at a whole corpus before any work on it: bad rows, repeated ids, and the list of both."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from clara_dist.config.corpus import SurveyedCorpusConfig
from clara_dist.data.corpus import CorpusUnit, UnitDuplicates, UnitScan, find_duplicates
from clara_dist.data.corpus.passage_names import require_distinct_names
from clara_dist.distributed.actor_pool import Mapper
from clara_dist.distributed.compress_scan import DuplicateWork, MetadataCheck, RejectLister, UnitScanner, UnitWork
from clara_dist.distributed.progress import Progress
from clara_dist.errors import DataError
from clara_dist.store import files

_SHOWN_DUPLICATES = 5


@dataclass(frozen=True)
class Survey:
    """What a corpus holds.

    Attributes:
        work: Each unit with the documents of it that lose to others of their doc_ids, in corpus order.
        documents: Documents of each unit that are left.
        n_rejected: Rows that do not enter the store because they are bad, or another of their doc_id does.
        n_repeated: Texts that are left out because the same one is in the corpus already.
        id_hashes: Those of each unit's documents that are left, see `UnitScan`; only for a job that must not meet them
            in its store, else empty.
    """

    work: list[UnitWork]
    documents: list[int]
    n_rejected: int
    n_repeated: int
    id_hashes: list[npt.NDArray[np.uint64]]

    @property
    def n_documents(self) -> int:
        return sum(self.documents)


def survey_corpus(
    config: SurveyedCorpusConfig,
    units: Sequence[CorpusUnit],
    scan_on: Mapper,
    *,
    columns: Mapping[str, str] | None = None,
    passages: bool = False,
    keep_hashes: bool = False,
) -> Survey:
    """Scan a corpus, list its rejects, and see whether the job may go on.

    Memory: 24 bytes a document at most (a 128-bit hash of its id, and half of it once more to sort), 4 more in units
    with bad rows or blank lines. The rejects wait on disk.

    Args:
        config: The corpus, and what of it may be bad.
        units: Its units.
        scan_on: Who reads them.
        columns: Metadata that must fit typed columns, see `MetadataCheck`.
        passages: Documents may be split into passages, whose names must not be taken.
        keep_hashes: Fill `Survey.id_hashes`.

    Raises:
        DataError: The corpus cannot be read; too many rows are bad or none is good; or a doc_id stands twice, and
            ``on_duplicate`` is ``error``.
    """
    refuse = MetadataCheck(columns or {})
    with _RejectSpool() as spool:
        scans = _scan(units, scan_on, refuse, spool)
        duplicates = find_duplicates(scans, "last" if config.on_duplicate == "last" else "first")
        if passages:
            require_distinct_names(units, scans)
        n_bad = sum(scan.n_rejected for scan in scans)
        examples = _list_duplicates(units, scans, duplicates, scan_on, refuse, spool)
        spool.publish(config.rejects_path)
    repeated = [len(d.ordinals) for index, d in duplicates.items() if units[index].has_content_ids]
    n_losers = sum(len(found.ordinals) for found in duplicates.values()) - sum(repeated)
    found = Survey(
        work=[UnitWork(unit, _ordinals(duplicates.get(unit.index))) for unit in units],
        documents=[scan.n_documents - len(_ordinals(duplicates.get(scan.index))) for scan in scans],
        n_rejected=n_bad + n_losers,
        n_repeated=sum(repeated),
        id_hashes=[np.delete(scan.id_hashes, _ordinals(duplicates.get(scan.index)), axis=0) for scan in scans]
        if keep_hashes
        else [],
    )
    if config.on_duplicate == "error" and n_losers:
        raise DataError(
            "doc_ids stand twice in the corpus; nothing was done",
            got="\n    ".join([f"{n_losers} rows, listed in {config.rejects_path}", *examples]),
            expected="each doc_id once",
            hint="correct the corpus, or keep one row of each id: on_duplicate=first or on_duplicate=last",
        )
    _require_acceptable(config, found)
    return found


def _scan(units: Sequence[CorpusUnit], scan_on: Mapper, refuse: MetadataCheck, spool: _RejectSpool) -> list[UnitScan]:
    progress = Progress("rows scanned", sum(unit.n_rows for unit in units))
    scans: dict[int, UnitScan] = {}
    for index, scan in scan_on(UnitScanner, {"refuse": refuse}, units):
        spool.put(index, scan.rejects)
        scans[index] = scan.without_rejects()
        progress.note(n_rejects=scan.n_rejected)
        progress.add(units[index].n_rows)
    return [scans[index] for index in range(len(units))]


def _list_duplicates(
    units: Sequence[CorpusUnit],
    scans: Sequence[UnitScan],
    duplicates: dict[int, UnitDuplicates],
    scan_on: Mapper,
    refuse: MetadataCheck,
    spool: _RejectSpool,
) -> list[str]:
    """List the rejects of units with losers again, now with these. Returns the first few losers, for an error."""
    repeating = sorted(duplicates)
    tasks = [
        DuplicateWork(units[i], _ordinals(duplicates[i]), _winners(units, scans, duplicates[i])) for i in repeating
    ]
    examples: dict[int, tuple[str, ...]] = {}
    for index, listing in scan_on(RejectLister, {"refuse": refuse, "n_examples": _SHOWN_DUPLICATES}, tasks):
        spool.put(repeating[index], listing.lines)
        examples[index] = listing.examples
    return [line for index in sorted(examples) for line in examples[index]][:_SHOWN_DUPLICATES]


def _winners(units: Sequence[CorpusUnit], scans: Sequence[UnitScan], found: UnitDuplicates) -> tuple[str, ...]:
    """File and line of the document that each loser loses to."""
    winners = zip(found.winner_units.tolist(), found.winner_ordinals.tolist(), strict=True)
    places = (units[index].place(scans[index].number(units[index], ordinal)) for index, ordinal in winners)
    return tuple(f"{path}:{line}" for path, line in places)


def _ordinals(found: UnitDuplicates | None) -> tuple[int, ...]:
    return () if found is None else tuple(found.ordinals.tolist())


def _require_acceptable(config: SurveyedCorpusConfig, found: Survey) -> None:
    n_rows = found.n_documents + found.n_rejected
    allowed = config.allowed_rejects(n_rows)
    if found.n_rejected > allowed:
        raise DataError(
            "too many rows of the corpus are bad; nothing was done",
            got=f"{found.n_rejected} of {n_rows} rows, listed in {config.rejects_path}",
            expected=f"at most {allowed} (max_rejects={config.max_rejects:g})",
            hint="correct the rows, or raise max_rejects",
        )
    if found.n_documents == 0:
        raise DataError(
            "the corpus has no good document", got=f"{found.n_rejected} bad rows, listed in {config.rejects_path}"
        )


class _RejectSpool:
    """Rejects on disk, as they come; what was put for a unit last counts."""

    def __init__(self) -> None:
        self._file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115  closed by __exit__
        self._places: dict[int, tuple[int, int]] = {}

    def __enter__(self) -> _RejectSpool:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def put(self, index: int, lines: bytes) -> None:
        if lines:
            self._file.seek(0, 2)
            self._places[index] = (self._file.tell(), len(lines))
            self._file.write(lines)

    def publish(self, path: str) -> None:
        """Make them one file, in corpus order."""
        with tempfile.TemporaryFile() as ordered:
            for lines in self._in_order():
                ordered.write(lines)
            files.write_from(path, ordered)

    def _in_order(self) -> Iterator[bytes]:
        for _, (start, size_bytes) in sorted(self._places.items()):
            self._file.seek(start)
            yield self._file.read(size_bytes)
