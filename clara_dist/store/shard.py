"""One shard: an Arrow IPC file of one uncompressed record batch, so that its memories are one block of bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clara_dist.errors import CorruptStoreError, StoreError
from clara_dist.store.manifest import ShardInfo
from clara_dist.store.schema import StoreSchema
from clara_dist.store.storage import ReadableFiles


@dataclass(frozen=True)
class Shard:
    """Rows ``row_offset .. row_offset + rows`` of a store.

    Attributes:
        info: What the manifest says of it.
        row_offset: Global row number of its first document.
        live: Which rows of the file are not deleted, int64, ascending; None: all. The arrays below have all rows of
            the file, so row i of the shard is their row ``positions(i)``.
        batch: All columns; local shards are views of the mapped file.
        memory_SMD: float16, read-only, without a copy.
        norms_S: float32, read-only, without a copy: Euclidean norm of each flattened memory.
    """

    info: ShardInfo
    row_offset: int
    batch: pa.RecordBatch
    memory_SMD: np.ndarray
    norms_S: np.ndarray
    live: np.ndarray | None = None

    @property
    def rows(self) -> int:
        return self.info.rows if self.live is None else len(self.live)

    @property
    def doc_ids(self) -> pa.StringArray:
        """Ids of the documents that are not deleted."""
        ids = self.batch.column("doc_id")
        return ids if self.live is None else ids.take(pa.array(self.live))

    @property
    def parent_ids(self) -> pa.StringArray:
        """For each of `doc_ids`, the document that it is a passage of."""
        ids = self.batch.column("parent_id")
        return ids if self.live is None else ids.take(pa.array(self.live))

    def positions(self, rows: np.ndarray) -> np.ndarray:
        """Where rows of the shard, counted from its first, stand in the file."""
        return rows if self.live is None else self.live[rows]


def serialize(table: pa.Table) -> pa.Buffer:
    """The bytes of a shard file, writable; equal tables give equal bytes."""
    # One batch even of no rows: its presence is what tells an empty shard from a damaged one.
    columns = [column.chunk(0) if column.num_chunks == 1 else column.combine_chunks() for column in table.columns]
    batch = pa.RecordBatch.from_arrays(columns, schema=table.schema)
    # Measured first: a buffer that grows while it is written holds the bytes twice.
    measure = pa.MockOutputStream()
    _write_batch(measure, batch)
    data = pa.allocate_buffer(measure.size())
    _write_batch(pa.FixedSizeBufferWriter(data), batch)
    return data


def _write_batch(sink: pa.NativeFile, batch: pa.RecordBatch) -> None:
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def checksum(data: pa.Buffer) -> str:
    """SHA-256: in the standard library, in hardware on every server CPU since 2019, and nobody can forge a match."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def file_checksum(storage: ReadableFiles, file: str) -> str:
    """The checksum of a stored file's bytes. Raises OSError."""
    with storage.open(file) as source:
        return checksum(source.read_buffer())


def describe(file: str, data: pa.Buffer, rows: pa.RecordBatch) -> ShardInfo:
    """The manifest's entry for a shard's bytes; ``rows`` are its columns, or all but the memories."""
    bounds = pc.min_max(rows.column("doc_id")).as_py()
    return ShardInfo(
        file=file,
        rows=rows.num_rows,
        documents=pc.count_distinct(rows.column("parent_id")).as_py(),
        truncated=pc.sum(rows.column("truncated")).as_py() or 0,
        size_bytes=data.size,
        checksum=checksum(data),
        min_doc_id=bounds["min"],
        max_doc_id=bounds["max"],
    )


@contextmanager
def reading(url: str, file: str) -> Iterator[None]:
    """Turn whatever damaged bytes make pyarrow or Python raise into one error that names the file."""
    try:
        yield
    except StoreError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise CorruptStoreError(
            f"the file {file} of the store {url} is damaged",
            got=f"{type(error).__name__}: {error}",
            hint="`clara-dist store verify` lists all damage; restore the file or compress its documents again",
        ) from error


def read_batch(source: pa.NativeFile, schema: StoreSchema, columns: Sequence[str] | None = None) -> pa.RecordBatch:
    """The record batch of an open shard file; views of the file if it is mapped.

    Args:
        source: The file.
        schema: What its columns must be.
        columns: Read these only (the bytes of the others are not touched); None means all.

    Raises:
        pa.ArrowException, ValueError: The file is no shard of this schema. Call it inside `reading`.
    """
    reader = pa.ipc.open_file(source)
    expected = schema.arrow_schema()
    if reader.schema != expected:
        raise ValueError(
            f"its columns are {reader.schema.names}, those of the store are {expected.names} (or their types differ)"
        )
    if columns is not None:
        fields = [expected.get_field_index(name) for name in columns]
        reader = pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=fields))
    if reader.num_record_batches != 1:
        raise ValueError(f"it holds {reader.num_record_batches} record batches instead of one")
    batch = reader.get_batch(0)
    batch.validate()
    for column in batch.schema:
        if not column.nullable and batch.column(column.name).null_count:
            raise ValueError(f"column {column.name} holds nulls")
    return batch


def documents_of(data: pa.Buffer) -> pa.RecordBatch:
    """What a shard's bytes hold apart from what a model computed: the memories and their norms.

    Raises:
        pa.ArrowException, ValueError: The bytes are no shard. Call it inside `reading`.
    """
    reader = pa.ipc.open_file(data)
    batch = reader.get_batch(0)
    batch.validate()
    return batch.drop_columns(["memory", "norm"])


def open_shard(
    storage: ReadableFiles, info: ShardInfo, schema: StoreSchema, row_offset: int, live: np.ndarray | None = None
) -> Shard:
    """Map a shard and check what is cheap to check: its presence, size, columns and row count, but not its checksum.

    Raises:
        CorruptStoreError: The shard is missing, truncated, longer than it was, or no shard of this schema.
    """
    batch = read_columns(storage, info, schema)
    with reading(storage.url, info.file):
        flat = batch.column("memory").storage.flatten().to_numpy(zero_copy_only=True)
        return Shard(
            info=info,
            row_offset=row_offset,
            batch=batch,
            memory_SMD=flat.reshape(info.rows, schema.n_memory_tokens, schema.hidden_size),
            norms_S=batch.column("norm").to_numpy(zero_copy_only=True),
            live=live,
        )


def read_doc_ids(storage: ReadableFiles, info: ShardInfo, schema: StoreSchema) -> pa.StringArray:
    """The ids of one shard, checked as in `open_shard`, without reading its memories.

    Raises:
        CorruptStoreError: As `open_shard`.
    """
    return read_columns(storage, info, schema, ["doc_id"]).column("doc_id")


def read_columns(
    storage: ReadableFiles, info: ShardInfo, schema: StoreSchema, columns: Sequence[str] | None = None
) -> pa.RecordBatch:
    """Some columns of one shard, or all, checked as in `open_shard`; the bytes of the others are not touched.

    Raises:
        CorruptStoreError: As `open_shard`.
    """
    with reading(storage.url, info.file):
        size_bytes = storage.size_bytes(info.file)
        if size_bytes is None:
            raise ValueError("the file is missing")
        if size_bytes != info.size_bytes:
            raise ValueError(f"it has {size_bytes} bytes, the manifest says {info.size_bytes}")
        # Closing gives the file descriptor back (a store may have more shards than a process may open files); the
        # columns keep the mapping itself alive.
        with storage.open(info.file) as source:
            batch = read_batch(source, schema, columns)
        if batch.num_rows != info.rows:
            raise ValueError(f"it has {batch.num_rows} rows, the manifest says {info.rows}")
        return batch


def find_duplicates(doc_ids: Mapping[str, pa.StringArray], limit: int = 5) -> dict[str, list[str]]:
    """Documents that come more than once.

    Args:
        doc_ids: File of each shard -> its ids.
        limit: Stop after so many.

    Returns:
        ``doc_id`` -> the files that hold it, one entry per row.
    """
    ids = pa.chunked_array(list(doc_ids.values()), pa.string())
    # Counting is one pass over a hash table in C++; the ids that come twice are only looked for if there are any.
    if pc.count_distinct(ids).as_py() == len(ids):
        return {}
    counts = pc.value_counts(ids)
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1)).slice(0, limit)
    found: dict[str, list[str]] = {doc_id: [] for doc_id in repeated.to_pylist()}
    for file, chunk in doc_ids.items():
        for doc_id in chunk.filter(pc.is_in(chunk, repeated)).to_pylist():
            found[doc_id].append(file)
    return found
