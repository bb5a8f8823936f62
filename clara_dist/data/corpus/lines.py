"""Corpora of one JSON object per line: documents (jsonl, BEIR) and CLaRa training rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from clara_dist.data.corpus.units import CorpusUnit, RowFormat
from clara_dist.data.documents import (
    TEXT_FIELDS,
    BadRow,
    Document,
    FieldMap,
    Reject,
    checked_text,
    content_id,
    document_from_row,
    excerpt_of,
    value_at,
)
from clara_dist.data.json_lines import iter_lines, parse_object, skip_bom
from clara_dist.data.layouts import clara_row, layout_of
from clara_dist.data.streams import KeptFile, open_bytes
from clara_dist.errors import DataError

_CHUNK_BYTES = 4 * 1024**2
_ROWS_TO_DETECT = 100


@dataclass(frozen=True)
class LineRange:
    """Consecutive lines, bytes ``start`` to ``stop`` of the decompressed file, and their content hash.

    Of other formats than lines: rows or files ``start`` to ``stop``, and the digest that `CorpusUnit` has.
    """

    start: int
    stop: int
    first_line: int
    n_lines: int
    digest: str


@dataclass(frozen=True)
class LineHead:
    """What the first rows of a file tell: their format, and the fields that any of them has, as paths with dots."""

    format: RowFormat
    fields: frozenset[str]


def read_head(path: str, fields: FieldMap, max_line_bytes: int) -> LineHead:
    """Look at the first 100 rows. The first that is a JSON object tells documents from CLaRa training rows.

    Raises:
        DataError: The file cannot be read, has no rows, or is one JSON array.
    """
    first_byte, rows = b"", []
    with open_bytes(path) as stream:
        skip_bom(stream)
        for _, line in islice(iter_lines(stream, max_line_bytes=max_line_bytes), _ROWS_TO_DETECT):
            first_byte = first_byte or (line or b"?").lstrip()[:1]
            try:
                rows.append(parse_object(line))
            except BadRow:
                continue  # it becomes a reject when it is read
    if not first_byte:
        raise DataError(f"{path} is empty: it has no rows")
    if not rows and first_byte == b"[":
        raise DataError(
            f"{path} is a JSON array",
            expected="JSON lines: one object per line",
            hint="`clara-dist data convert` makes rows of CLaRa's form from a published data set",
        )
    texts = TEXT_FIELDS if fields.text is None else (fields.text,)
    is_training = bool(rows) and all(value_at(rows[0], name) is None for name in texts)
    is_training = is_training and ("docs" in rows[0] or layout_of(rows[0]) != "clara")
    return LineHead("clara" if is_training else "jsonl", frozenset(_paths(rows)))


def _paths(rows: list[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        for name, value in row.items():
            yield name
            if isinstance(value, dict):
                yield from (f"{name}.{inner}" for inner in _paths([value]))


def plan_lines(path: str, rows_per_unit: int, bytes_per_unit: int) -> list[LineRange]:
    """Cut a file into ranges, in one sequential pass and with flat memory.

    A range ends with the line that completes ``rows_per_unit`` lines or ``bytes_per_unit`` bytes.

    Raises:
        DataError: The file cannot be read.
    """
    ranges: list[LineRange] = []
    with open_bytes(path) as stream:
        start = position = skip_bom(stream)
        first_line, n_lines, last_byte = 1, 0, b""
        digest = hashlib.blake2b(digest_size=16)
        while chunk := stream.read(_CHUNK_BYTES):
            ends = np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == ord("\n")) + 1
            cut = n_counted = 0
            while True:
                last = n_counted + rows_per_unit - n_lines - 1  # lines of earlier chunks count
                last = min(last, int(np.searchsorted(ends, start + bytes_per_unit - position)))
                if last >= len(ends):
                    break
                n_lines += last + 1 - n_counted
                digest.update(memoryview(chunk)[cut : ends[last]])
                cut, n_counted = int(ends[last]), last + 1
                ranges.append(LineRange(start, position + cut, first_line, n_lines, digest.hexdigest()))
                start, first_line, n_lines = position + cut, first_line + n_lines, 0
                digest = hashlib.blake2b(digest_size=16)
            digest.update(memoryview(chunk)[cut:])
            n_lines += len(ends) - n_counted
            position += len(chunk)
            last_byte = chunk[-1:]
    if position > start:
        n_lines += last_byte != b"\n"
        ranges.append(LineRange(start, position, first_line, n_lines, digest.hexdigest()))
    return ranges


def read_lines(unit: CorpusUnit, kept: KeptFile | None = None) -> Iterator[tuple[int, Document | Reject]]:
    """Yield (line number, document or reject) of a ``jsonl`` or ``clara`` unit.

    Raises:
        DataError: The file cannot be read, or (after the last row) its bytes are not those that were planned.
    """
    digest = hashlib.blake2b(digest_size=16)
    with open_bytes(unit.path, kept) as stream:
        stream.seek(unit.start)  # a compressed file is decompressed up to there, from where it stands
        for number, line in iter_lines(
            stream,
            first_line=unit.first_line,
            n_bytes=unit.stop - unit.start,
            max_line_bytes=unit.max_line_bytes,
            digest=digest,
        ):
            for item in _items_of_line(line, unit):
                if isinstance(item, Document):
                    yield number, item
                else:
                    yield number, Reject(unit.path, number, item.reason, item.doc_id, excerpt_of(line or b""))
    if digest.hexdigest() != unit.digest:
        raise changed_error(unit)


def changed_error(unit: CorpusUnit) -> DataError:
    """The error for a unit whose bytes are not those that were planned."""
    return DataError(
        f"{unit.path} was changed while it was being read",
        got=f"other bytes from {'file' if unit.format == 'text' else 'line'} {unit.first_line} on than when the work "
        "was planned",
        hint="run the command again on a corpus that stays as it is",
    )


def _items_of_line(line: bytes | None, unit: CorpusUnit) -> Iterator[Document | BadRow]:
    try:
        row = parse_object(line)
        if unit.format == "jsonl":
            yield document_from_row(row, unit.fields)
        else:
            yield from _documents_of_training_row(row)
    except BadRow as bad:
        yield bad


def _documents_of_training_row(row: dict[str, Any]) -> Iterator[Document | BadRow]:
    texts = clara_row(row).get("docs")
    if not isinstance(texts, list) or not texts:
        raise BadRow("missing docs" if texts is None else "docs is not a list of texts, or an empty one")
    for position, text in enumerate(texts):
        try:
            text = checked_text(f"docs[{position}]", text)
        except BadRow as bad:  # the row's other documents are as good as before
            yield bad
        else:
            yield Document(content_id(text), "", text)
