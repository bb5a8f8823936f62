"""Reading one unit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import SupportsInt

from clara_dist.data.corpus.lines import read_lines
from clara_dist.data.corpus.parquet import read_parquet
from clara_dist.data.corpus.units import CorpusUnit
from clara_dist.data.documents import Document, Reject, excerpt_of

# Why a document that is good in itself cannot enter this store; None if it can.
Refuse = Callable[[Document], str | None]


def read_unit(
    unit: CorpusUnit, duplicates: Iterable[SupportsInt] = (), *, refuse: Refuse | None = None
) -> Iterator[Document | Reject]:
    """Yield the unit's documents and rejects in the order of the file, one at a time.

    Args:
        unit: What to read.
        duplicates: The unit's entry of `duplicate_rows`: which of its documents, counted from 0, have a doc_id that
            stood earlier in the corpus. They come as rejects.
        refuse: Makes rejects of further documents; those are not counted, so scan and read with the same one.

    Raises:
        DataError: The file cannot be read, is damaged, or was changed since it was planned. A bad row is no error.
    """
    repeated = {int(ordinal) for ordinal in duplicates}
    ordinal = 0
    for line, item in (read_parquet if unit.format == "parquet" else read_lines)(unit):
        if isinstance(item, Reject):
            yield item
            continue
        reason = refuse(item) if refuse is not None else None
        if reason is not None:
            yield Reject(unit.path, line, reason, item.doc_id, excerpt_of(item.text))
            continue
        yield _duplicate(unit, line, item) if ordinal in repeated else item
        ordinal += 1


def _duplicate(unit: CorpusUnit, line: int, document: Document) -> Reject:
    same_text = unit.format == "clara"  # there the id is the hash of the text
    reason = "the same text stands earlier in the corpus" if same_text else "duplicate doc_id (the first one is kept)"
    return Reject(unit.path, line, reason, document.doc_id, excerpt_of(document.text), repeated=same_text)
