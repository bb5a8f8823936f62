"""A unit: the piece of a corpus that one task reads, small enough to be done again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

CorpusFormat = Literal["auto", "jsonl", "clara", "beir", "parquet"]
RowFormat = Literal["jsonl", "clara", "parquet"]


@dataclass(frozen=True, slots=True)
class CorpusUnit:
    """Consecutive rows of one file.

    Attributes:
        index: Position in the corpus; units in this order give the documents in the corpus's order.
        path: The file.
        format: How a row is read. ``jsonl``: one document; ``clara``: a training row, every entry of ``docs`` is one;
            ``parquet``: one document.
        start: First byte, of the decompressed file if it is gzip; in Parquet the first row, from 0.
        stop: One past the last byte or row.
        first_line: 1-based line, in Parquet row, of the first row.
        n_rows: Rows, blank lines included: an upper bound of the documents, except for ``clara``.
        digest: Content hash of the bytes; in Parquet of the whole file.
        max_line_bytes: Longer lines are rejected.
    """

    index: int
    path: str
    format: RowFormat
    start: int
    stop: int
    first_line: int
    n_rows: int
    digest: str
    max_line_bytes: int

    def __str__(self) -> str:
        return f"{self.path}, {self.n_rows} rows from {self.first_line} on"

    @property
    def identity(self) -> str:
        """Hash of all that decides which documents the unit gives; where the file lies does not."""
        fields = [self.index, self.format, self.start, self.stop, self.first_line, self.digest, self.max_line_bytes]
        return hashlib.blake2b(json.dumps(fields).encode(), digest_size=16).hexdigest()


def corpus_fingerprint(units: Sequence[CorpusUnit]) -> str:
    """Hash of a planned corpus. A job that resumes compares it, so it never mixes two states of a corpus."""
    digest = hashlib.blake2b(digest_size=16)
    for unit in units:
        digest.update(bytes.fromhex(unit.identity))
    return digest.hexdigest()
