"""Reading one unit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import SupportsInt

from clara_dist.data.corpus.lines import read_lines
from clara_dist.data.corpus.tables import read_table
from clara_dist.data.corpus.texts import read_texts
from clara_dist.data.corpus.units import CorpusUnit
from clara_dist.data.documents import Document, Reject, excerpt_of
from clara_dist.data.streams import KeptFile

# Why a document that is good in itself cannot enter this store; None if it can.
Refuse = Callable[[Document], str | None]


def read_unit(
    unit: CorpusUnit,
    duplicates: Sequence[SupportsInt] = (),
    *,
    winners: Sequence[str] = (),
    refuse: Refuse | None = None,
    kept: KeptFile | None = None,
) -> Iterator[Document | Reject]:
    """Yield the unit's documents and rejects in the order of the file, one at a time.

    Args:
        unit: What to read.
        duplicates: Which of its documents, counted from 0, lose to another of the same doc_id. They come as rejects.
        winners: Where each one's winner is, for the reason.
        refuse: Makes rejects of further documents; those are not counted, so scan and read with the same one.
        kept: Of a worker that reads many units, see `KeptFile`.

    Raises:
        DataError: The file cannot be read, is damaged, or was changed since it was planned. A bad row is no error.
    """
    for _, item in numbered_items(unit, duplicates, winners=winners, refuse=refuse, kept=kept):
        yield item


def numbered_items(
    unit: CorpusUnit,
    duplicates: Sequence[SupportsInt] = (),
    *,
    winners: Sequence[str] = (),
    refuse: Refuse | None = None,
    kept: KeptFile | None = None,
) -> Iterator[tuple[int, Document | Reject]]:
    """As `read_unit`, each with its line, row or file, which counts on from the unit's ``first_line``."""
    losers = {int(ordinal): i for i, ordinal in enumerate(duplicates)}
    ordinal = 0
    for number, item in _read(unit, kept):
        if isinstance(item, Reject):
            yield number, item
            continue
        reason = refuse(item) if refuse is not None else None
        if reason is not None:
            yield number, Reject(*unit.place(number), reason, item.doc_id, excerpt_of(item.text))
            continue
        if ordinal in losers:
            winner = winners[losers[ordinal]] if winners else "another"
            yield number, _duplicate(unit, number, item, winner)
        else:
            yield number, item
        ordinal += 1


def _read(unit: CorpusUnit, kept: KeptFile | None) -> Iterator[tuple[int, Document | Reject]]:
    if unit.format in ("parquet", "arrow"):
        return read_table(unit, kept)
    return read_texts(unit) if unit.format == "text" else read_lines(unit, kept)


def _duplicate(unit: CorpusUnit, number: int, document: Document, winner: str) -> Reject:
    what = "repeated text" if unit.has_content_ids else "duplicate doc_id"
    return Reject(
        *unit.place(number),
        f"{what} ({winner} is kept)",
        document.doc_id,
        excerpt_of(document.text),
        repeated=unit.has_content_ids,
        duplicate_of=winner,
    )
