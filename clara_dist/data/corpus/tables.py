"""Corpora in columns, under the same names as the fields of jsonl: Parquet, and the Arrow files of `datasets`."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clara_dist.data.corpus.lines import LineRange
from clara_dist.data.corpus.units import CorpusUnit, RowFormat
from clara_dist.data.documents import BadRow, Document, FieldMap, Reject, document_from_row, excerpt_of
from clara_dist.data.json_lines import parse_json
from clara_dist.data.streams import KeptFile, open_bytes, require_file
from clara_dist.errors import DataError
from clara_dist.store import files

_BATCH_ROWS = 256
_CHUNK_BYTES = 4 * 1024**2
# Without a buffer a column chunk is read whole, and a file of one row group is one chunk a column.
_BUFFER_BYTES = 1 << 20


class _Cursor(Protocol):
    """A file of rows that is read on from where it stands, or from an earlier place."""

    schema: Any
    n_rows: int

    def slices(self, start: int, stop: int) -> Iterator[tuple[int, Any]]:
        """Yield (number of the first row, record batch) over rows ``start`` to ``stop``, from 0."""
        ...


def table_fields(path: str, row_format: RowFormat) -> frozenset[str]:
    """The columns, and the fields of columns that are objects, as paths with dots.

    Raises:
        DataError: It is no such file.
    """
    with _opened(path, row_format, None, None) as cursor:
        return frozenset(_paths(cursor.schema))


def _paths(fields: Any, prefix: str = "") -> Iterator[str]:
    for field in fields:
        yield prefix + field.name
        if pa.types.is_struct(field.type):
            yield from _paths(field.type, f"{prefix}{field.name}.")


def plan_table(
    path: str, row_format: RowFormat, fields: FieldMap, rows_per_unit: int, bytes_per_unit: int
) -> list[LineRange]:
    """Cut a file into ranges as `plan_lines` cuts lines, by the bytes of its texts.

    Raises:
        DataError: It is no such file, is damaged, or has no rows.
    """
    stops, n_rows, n_bytes = [], 0, 0
    start = 0
    with _opened(path, row_format, fields, None) as cursor:
        for _, batch in cursor.slices(0, cursor.n_rows):
            for size in _text_sizes(batch):
                n_rows, n_bytes = n_rows + 1, n_bytes + size
                if n_rows - start == rows_per_unit or n_bytes >= bytes_per_unit:
                    stops.append(n_rows)
                    start, n_bytes = n_rows, 0
    if n_rows == 0:
        raise DataError(f"{path} is empty: it has no rows")
    digest = hashlib.blake2b(digest_size=16)
    with open_bytes(path) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    edges = [0, *stops] if start == n_rows else [0, *stops, n_rows]
    return [LineRange(low, high, low + 1, high - low, digest.hexdigest()) for low, high in itertools.pairwise(edges)]


def _text_sizes(batch: Any) -> list[int]:
    """Bytes of the strings of each row. Of strings inside objects nothing is known without reading them."""
    sizes = np.zeros(batch.num_rows, np.int64)
    for column in batch.columns:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            sizes += pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False)
    return sizes.tolist()


def read_table(unit: CorpusUnit, kept: KeptFile | None = None) -> Iterator[tuple[int, Document | Reject]]:
    """Yield (1-based row number, document or reject) of a unit, a few hundred rows in memory at a time.

    Raises:
        DataError: The file cannot be read or is damaged.
    """
    with _opened(unit.path, unit.format, unit.fields, kept) as cursor:
        for first, batch in cursor.slices(unit.start, unit.stop):
            for i in range(batch.num_rows):
                yield first + i + 1, _document(batch, i, unit, first + i + 1)


def iter_table_rows(path: str, row_format: RowFormat) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (1-based row number, row) of a whole file, all columns.

    Raises:
        DataError: The file cannot be read or is damaged.
    """
    with _opened(path, row_format, None, None) as cursor:
        for first, batch in cursor.slices(0, cursor.n_rows):
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                try:
                    rows = batch.slice(start, _BATCH_ROWS).to_pylist()
                except UnicodeDecodeError as error:
                    raise DataError(f"{path} has invalid UTF-8 behind row {first + start}", got=error) from error
                yield from enumerate(rows, first + start + 1)


def _document(batch: Any, i: int, unit: CorpusUnit, number: int) -> Document | Reject:
    row: dict[str, Any] = {}
    try:
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                row[name] = column[i].as_py()
            except UnicodeDecodeError:  # Arrow does not look into the strings that it reads
                raise BadRow(f"invalid UTF-8 in column {name}") from None
        if isinstance(row.get("metadata"), str):  # neither format has a type for a JSON object
            try:
                row["metadata"] = parse_json(row["metadata"])
            except BadRow as bad:
                raise BadRow(f"metadata: {bad.reason}") from None
        return document_from_row(row, unit.fields)
    except BadRow as bad:
        return Reject(unit.path, number, bad.reason, bad.doc_id, excerpt_of(str(row)))


class _ParquetCursor:
    """Row groups can be entered, the rows in one only from its first on."""

    def __init__(self, path: str, columns: frozenset[str] | None, closing: ExitStack) -> None:
        raw = closing.enter_context(files.open_input(path))
        self._file = closing.enter_context(pq.ParquetFile(raw, buffer_size=_BUFFER_BYTES, pre_buffer=False))
        self.schema = self._file.schema_arrow
        self.n_rows = self._file.metadata.num_rows
        self._columns = [name for name in self.schema.names if columns is None or name in columns]
        self._group = -1
        self._first = 0
        self._batch: Any = None
        self._batches: Iterator[Any] = iter(())

    def slices(self, start: int, stop: int) -> Iterator[tuple[int, Any]]:
        first = 0
        for group in range(self._file.metadata.num_row_groups):
            last = first + self._file.metadata.row_group(group).num_rows
            low, high = max(start, first), min(stop, last)
            if low < high:
                yield from self._slices_of_group(group, first, low, high)
            first = last

    def _slices_of_group(self, group: int, first: int, low: int, high: int) -> Iterator[tuple[int, Any]]:
        if group != self._group or low < self._first:
            self._batches = self._file.iter_batches(
                _BATCH_ROWS, row_groups=[group], columns=self._columns, use_threads=False
            )
            self._group, self._first, self._batch = group, first, self._next()
        while True:
            end = self._first + self._batch.num_rows
            start, stop = max(low, self._first), min(high, end)
            if start < stop:
                yield start, self._batch.slice(start - self._first, stop - start)
            if end >= high:
                return
            self._first, self._batch = end, self._next()

    def _next(self) -> Any:
        batch = next(self._batches, None)
        if batch is None:
            raise pa.ArrowInvalid(f"a row group has fewer rows than the {self.n_rows} of the file's index promise")
        return batch


class _ArrowCursor:
    """Memory-mapped: a record batch is no copy, and the page cache gives its memory back when it is needed."""

    def __init__(self, path: str, columns: frozenset[str] | None, closing: ExitStack) -> None:
        source = closing.enter_context(pa.memory_map(path))
        try:
            stream = pa.ipc.open_stream(source)
            self.schema, self._batches = stream.schema, list(stream)
        except pa.ArrowInvalid:  # the other of Arrow's two formats
            reader = pa.ipc.open_file(source)
            self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            self.schema = reader.schema
        self.n_rows = sum(batch.num_rows for batch in self._batches)
        self._columns = [name for name in self.schema.names if columns is None or name in columns]

    def slices(self, start: int, stop: int) -> Iterator[tuple[int, Any]]:
        first = 0
        for batch in self._batches:
            last = first + batch.num_rows
            low, high = max(start, first), min(stop, last)
            if low < high:
                yield low, batch.select(self._columns).slice(low - first, high - low)
            first = last


@contextmanager
def _opened(path: str, row_format: RowFormat, fields: FieldMap | None, kept: KeptFile | None) -> Iterator[_Cursor]:
    own = KeptFile() if kept is None else kept
    columns = None if fields is None else fields.top_level
    cursor = _ParquetCursor if row_format == "parquet" else _ArrowCursor
    try:
        require_file(path)
        yield own.get((path, columns), lambda closing: cursor(path, columns, closing))
    except BaseException as error:
        own.close()
        if isinstance(error, (pa.ArrowException, OSError)):
            kind = "Parquet" if row_format == "parquet" else "Arrow"
            raise DataError(f"{path} is damaged, or no {kind} file", got=error) from error
        raise
    finally:
        if kept is None:
            own.close()
