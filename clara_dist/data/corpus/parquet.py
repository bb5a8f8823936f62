"""Corpora in Parquet: the same column names as the fields of jsonl."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clara_dist.data.corpus.units import CorpusUnit
from clara_dist.data.documents import (
    ID_FIELDS,
    TEXT_FIELDS,
    BadRow,
    Document,
    Reject,
    document_from_row,
    excerpt_of,
)
from clara_dist.data.json_lines import open_bytes, parse_json, require_file
from clara_dist.errors import DataError

_COLUMNS = (*ID_FIELDS, *TEXT_FIELDS, "title", "metadata")
_BATCH_ROWS = 256
_CHUNK_BYTES = 4 * 1024**2


def plan_parquet(path: str) -> tuple[int, str]:
    """Number of rows, and content hash of the file.

    Raises:
        DataError: The file is no Parquet file, has no rows, or lacks a column that every document needs.
    """
    with _open(path) as file:
        n_rows, names = file.metadata.num_rows, file.schema_arrow.names
    for needed in (ID_FIELDS, TEXT_FIELDS):
        if not set(needed) & set(names):
            raise DataError(
                f"{path} has no column {', '.join(needed[:-1])} or {needed[-1]}", got=f"columns {', '.join(names)}"
            )
    if n_rows == 0:
        raise DataError(f"{path} is empty: it has no rows")
    digest = hashlib.blake2b(digest_size=16)
    with open_bytes(path) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return n_rows, digest.hexdigest()


def read_parquet(unit: CorpusUnit) -> Iterator[tuple[int, Document | Reject]]:
    """Yield (1-based row number, document or reject) of a unit, a few hundred rows in memory at a time.

    Raises:
        DataError: The file cannot be read or is damaged.
    """
    with _open(unit.path) as file:
        names = [name for name in file.schema_arrow.names if name in _COLUMNS]
        groups, skip = _row_groups(file.metadata, unit.start, unit.stop)
        number = unit.start - skip
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=groups, columns=names, use_threads=False):
            for i in range(batch.num_rows):
                number += 1
                if unit.start < number <= unit.stop:
                    yield number, _document(batch, i, unit.path, number)


def _row_groups(metadata: Any, start: int, stop: int) -> tuple[list[int], int]:
    """The row groups that hold rows ``start`` to ``stop``, and how many of their rows come before ``start``."""
    groups: list[int] = []
    skip = first = 0
    for group in range(metadata.num_row_groups):
        n_rows = metadata.row_group(group).num_rows
        if first < stop and first + n_rows > start:
            if not groups:
                skip = start - first
            groups.append(group)
        first += n_rows
    return groups, skip


def _document(batch: Any, i: int, path: str, number: int) -> Document | Reject:
    row: dict[str, Any] = {}
    try:
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                row[name] = column[i].as_py()
            except UnicodeDecodeError:  # Arrow does not look into the strings that it reads
                raise BadRow(f"invalid UTF-8 in column {name}") from None
        if isinstance(row.get("metadata"), str):  # Parquet has no type for a JSON object
            try:
                row["metadata"] = parse_json(row["metadata"])
            except BadRow as bad:
                raise BadRow(f"metadata: {bad.reason}") from None
        return document_from_row(row)
    except BadRow as bad:
        return Reject(path, number, bad.reason, bad.doc_id, excerpt_of(str(row)))


@contextmanager
def _open(path: str) -> Iterator[Any]:
    require_file(path)
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is damaged, or no Parquet file", got=error) from error
