"""A unit: the piece of a corpus that one task reads, small enough to be done again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from clara_dist.data.documents import CONTENT_ID, FieldMap
from clara_dist.store import files

RowFormat = Literal["jsonl", "clara", "parquet", "arrow", "text"]


@dataclass(frozen=True, slots=True)
class CorpusUnit:
    """Consecutive rows of one file, or some of many small files.

    Attributes:
        index: Position in the corpus; units in this order give the documents in the corpus's order.
        path: The file; of ``text`` the folder.
        format: How a row is read. ``jsonl``: one document; ``clara``: a training row, every entry of ``docs`` is one;
            ``parquet`` and ``arrow`` (Hugging Face datasets): one document; ``text``: a file is one document.
        start: First byte, of the decompressed file if it is compressed; else the first row or file, from 0.
        stop: One past the last byte, row or file.
        first_line: 1-based line, row or file, of the first row.
        n_rows: Rows, blank lines included: an upper bound of the documents, except for ``clara``.
        digest: Content hash of the bytes; in Parquet and Arrow of the whole file.
        max_line_bytes: Longer lines, and longer text files, are rejected.
        fields: Where a row has a document's parts.
        names: Of ``text``: the files, below ``path``.
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
    fields: FieldMap
    names: tuple[str, ...] = ()

    @property
    def has_content_ids(self) -> bool:
        """Whether a doc_id is the hash of the text, so that a repeated one is a repeated text."""
        return self.format == "clara" or (self.format != "text" and self.fields.doc_id == CONTENT_ID)

    def place(self, number: int) -> tuple[str, int]:
        """File and line of the unit's row ``number``, which counts on from ``first_line``."""
        if self.format == "text":
            return files.join(self.path, self.names[number - self.first_line]), 1
        return self.path, number

    @property
    def identity(self) -> str:
        """Hash of all that decides which documents the unit gives; where the file lies does not."""
        deciding = asdict(self)
        del deciding["path"], deciding["n_rows"]
        return hashlib.blake2b(json.dumps(deciding, sort_keys=True).encode(), digest_size=16).hexdigest()


def corpus_fingerprint(units: Sequence[CorpusUnit]) -> str:
    """Hash of a planned corpus. A job that resumes compares it, so it never mixes two states of a corpus."""
    digest = hashlib.blake2b(digest_size=16)
    for unit in units:
        digest.update(bytes.fromhex(unit.identity))
    return digest.hexdigest()
