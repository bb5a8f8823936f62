"""Parquet files out of a store, and a store out of them: one file a shard, with the fingerprint in each.

Parquet has the type float16 since format 2.10; other tools read the memories as lists of M * D numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clara_dist.errors import StoreError
from clara_dist.store.append import OnExisting, append_shards
from clara_dist.store.commits import Snapshot
from clara_dist.store.deletions import live_rows
from clara_dist.store.fingerprint import Fingerprint
from clara_dist.store.manifest import Manifest, ShardInfo
from clara_dist.store.schema import StoreSchema, memory_norms, nonfinite_rows
from clara_dist.store.shard import checksum, read_columns, serialize
from clara_dist.store.storage import Storage, StoreLocation, open_storage
from clara_dist.store.where import Filter, Where, parse_where
from clara_dist.store.writer import publish_shard

FORMAT = "clara_dist memories 1"
_KEY = b"clara_dist"
_ROW_GROUP_BYTES = 64 << 20
# Memories are as good as random: compressing them costs time and gains nothing.
_COMPRESSION = {"text": "zstd", "title": "zstd", "metadata": "zstd"}


@dataclass(frozen=True)
class Exported:
    """What the files of one export say of themselves.

    Attributes:
        schema: The store's.
        fingerprint: The model that wrote the memories.
        part: Number of this file, from 0 on.
        n_parts: How many there are.
        source: The store, its version, and the commit's id: what all parts have in common.
    """

    schema: StoreSchema
    fingerprint: Fingerprint
    part: int
    n_parts: int
    source: dict[str, Any]

    def to_json(self) -> bytes:
        """As the Parquet metadata has it."""
        return json.dumps(
            {
                "format": FORMAT,
                "fingerprint": dict(self.fingerprint.fields),
                "n_memory_tokens": self.schema.n_memory_tokens,
                "hidden_size": self.schema.hidden_size,
                "metadata_columns": dict(self.schema.metadata_columns),
                "part": self.part,
                "n_parts": self.n_parts,
                "source": self.source,
            }
        ).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Exported:
        """Raises ValueError or KeyError where `to_json` did not write it."""
        body = json.loads(data)
        if body["format"] != FORMAT:
            raise ValueError(f"its format is {body['format']!r}")
        schema = StoreSchema(body["n_memory_tokens"], body["hidden_size"], body["metadata_columns"])
        return cls(schema, Fingerprint(body["fingerprint"]), body["part"], body["n_parts"], body["source"])


def export_parquet(
    store: StoreLocation,
    folder: StoreLocation,
    version: int | None = None,
    *,
    where: Filter | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> list[str]:
    """Write a version as Parquet files, without its deleted rows. Memory holds one shard at a time.

    Args:
        store: The store's path or URL.
        folder: Path or URL; ``part-00000.parquet``, ... go there.
        version: None means the current one.
        where: Only the rows that this filter lets through, see `parse_where`; None: all.
        on_progress: Called with the number of documents after each file.

    Returns:
        Names of the files.

    Raises:
        StoreError: There is no store, no such version, or the folder holds other Parquet files.
        FilterError: ``where`` cannot be read, or does not fit the store's columns.
        CorruptStoreError: A shard is damaged.
    """
    storage, target = open_storage(store), open_storage(folder)
    snapshot = Snapshot.read(storage, version)
    manifest = snapshot.manifest
    # A store without shards still has a fingerprint and columns to tell.
    shards: tuple[ShardInfo | None, ...] = manifest.shards or (None,)
    source = {"store": storage.url, "version": manifest.version, "commit_id": manifest.commit_id}
    condition = None if where is None else parse_where(where, manifest.schema)
    if condition is not None:
        source["where"] = condition.text
    # Files of this very export are from a run that was interrupted.
    if any(_about(target, name).source != source for name in _parquet_files(target)):
        raise StoreError(f"{target.url} holds other Parquet files", hint="name an empty folder")
    names = []
    for part, shard in enumerate(shards):
        about = Exported(manifest.schema, manifest.fingerprint, part, len(shards), source)
        batch = _plain_batch(storage, snapshot, shard, condition)
        name = f"part-{part:05d}.parquet"
        target.publish(name, _parquet_bytes(batch, about), exclusive=False)
        names.append(name)
        if on_progress is not None:
            on_progress(batch.num_rows)
    return names


def import_parquet(
    folder: StoreLocation,
    store: StoreLocation,
    *,
    on_existing: OnExisting = "error",
    on_progress: Callable[[int], object] | None = None,
) -> Manifest:
    """Append the documents of an export to a store; made if it does not exist. Memory holds one file at a time.

    Args:
        folder: Where `export_parquet` wrote.
        store: The store's path or URL.
        on_existing: As for `append_shards`.
        on_progress: Called with the number of documents after each file.

    Raises:
        StoreError: The files are of no export, of several, or not all of one; or what `append_shards` raises.
    """
    source, storage = open_storage(folder), open_storage(store)
    names = _parquet_files(source)
    parts = [_about(source, name) for name in names]
    _require_one_export(source, names, parts)
    schema, fingerprint = parts[0].schema, parts[0].fingerprint
    shards = []
    for name in names:
        batch = _store_batch(source, name, schema)
        data = serialize(pa.Table.from_batches([batch]))
        # The name follows from the bytes, so that an import that was interrupted goes on.
        shard = publish_shard(storage, data, f"import-{checksum(data)[-32:]}")
        shards += [shard] if shard.rows else []
        if on_progress is not None:
            on_progress(shard.rows)
    writer_info = {"source": source.url, "exported_from": parts[0].source}
    return append_shards(storage, schema, fingerprint, shards, on_existing=on_existing, writer_info=writer_info)


def _parquet_files(storage: Storage) -> list[str]:
    return [name for name in storage.list_files("") if name.endswith(".parquet")]


def _plain_batch(storage: Storage, snapshot: Snapshot, shard: ShardInfo | None, where: Where | None) -> pa.RecordBatch:
    """A shard's live rows, of those that the filter lets through, with the memories as plain lists."""
    schema = snapshot.manifest.schema
    plain = _plain_schema(schema)
    if shard is None:
        return pa.RecordBatch.from_pylist([], plain)
    batch = read_columns(storage, shard, schema)
    rows = live_rows(shard.rows, snapshot.deletions.get(shard.file))
    if where is not None:
        rows = rows[where.matches(batch)[rows]]
    if len(rows) < shard.rows:
        batch = batch.take(pa.array(rows))
    columns = [c.storage if isinstance(c, pa.ExtensionArray) else c for c in batch.columns]
    return pa.RecordBatch.from_arrays(columns, schema=plain)


def _plain_schema(schema: StoreSchema) -> pa.Schema:
    size = schema.n_memory_tokens * schema.hidden_size
    memory = pa.field("memory", pa.list_(pa.float16(), size), nullable=False)
    columns = schema.arrow_schema()
    return columns.set(columns.get_field_index("memory"), memory)


def _parquet_bytes(batch: pa.RecordBatch, about: Exported) -> pa.Buffer:
    table = pa.Table.from_batches([batch]).replace_schema_metadata({_KEY: about.to_json()})
    rows = max(1, _ROW_GROUP_BYTES // max(1, batch.nbytes // max(1, batch.num_rows)))
    sink = pa.BufferOutputStream()
    compression = {name: _COMPRESSION.get(name, "none") for name in batch.schema.names}
    compression["memory.list.element"] = "none"
    pq.write_table(
        table,
        sink,
        row_group_size=rows,
        compression=compression,
        use_dictionary=False,
        write_page_checksum=True,
    )
    return sink.getvalue()


def _about(storage: Storage, name: str) -> Exported:
    with _reading_parquet(storage, name), storage.open(name) as file:
        metadata = pq.read_metadata(file).metadata or {}
        if _KEY not in metadata:
            raise ValueError("it does not say which model wrote its memories")
        return Exported.from_json(metadata[_KEY])


def _require_one_export(storage: Storage, names: list[str], parts: list[Exported]) -> None:
    if not parts:
        raise StoreError(f"there are no Parquet files in {storage.url}", hint="`clara-dist store export` writes them")
    first = parts[0]
    if any(part.source != first.source for part in parts):
        raise StoreError(f"the Parquet files in {storage.url} are of several exports", hint="import one at a time")
    if [part.part for part in parts] != list(range(first.n_parts)):
        raise StoreError(
            f"the export in {storage.url} is not whole",
            got=f"{len(parts)} files: {', '.join(names[:5])}",
            expected=f"{first.n_parts} files",
            hint="export again; an export that was interrupted lacks files",
        )


def _store_batch(storage: Storage, name: str, schema: StoreSchema) -> pa.RecordBatch:
    """A file's rows as a store has them, checked; norms are computed, not believed."""
    expected = schema.arrow_schema()
    with _reading_parquet(storage, name):
        with storage.open(name) as file:
            table = pq.read_table(file, page_checksum_verification=True).replace_schema_metadata(None)
        _check(table, _plain_schema(schema))
        columns = {column: table.column(column).combine_chunks() for column in expected.names}
        size = schema.n_memory_tokens * schema.hidden_size
        values = columns["memory"].flatten()
        memory_SMD = values.to_numpy(zero_copy_only=True).reshape(-1, schema.n_memory_tokens, schema.hidden_size)
        if len(memory_SMD) != table.num_rows or nonfinite_rows(memory_SMD).any():
            raise ValueError("a memory is not finite, or lacks values")
        storage_array = pa.FixedSizeListArray.from_arrays(values, size)
        columns["memory"] = pa.ExtensionArray.from_storage(schema.memory_type, storage_array)
        columns["norm"] = pa.array(memory_norms(memory_SMD))
        return pa.RecordBatch.from_arrays([columns[column] for column in expected.names], schema=expected)


def _check(table: pa.Table, plain: pa.Schema) -> None:
    if table.schema != plain:
        raise ValueError(f"its columns are {table.schema.names}, expected {plain.names} (or their types differ)")
    table.validate(full=True)
    for column in plain:
        if not column.nullable and table.column(column.name).null_count:
            raise ValueError(f"column {column.name} holds nulls")


@contextmanager
def _reading_parquet(storage: Storage, name: str) -> Iterator[None]:
    """Turn whatever a bad file makes pyarrow or Python raise into one error that names it."""
    try:
        yield
    except StoreError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{name} in {storage.url} is no export of a memory store that can be read",
            got=f"{type(error).__name__}: {error}",
            hint="`clara-dist store export` writes such files; memories without their fingerprint cannot be imported",
        ) from error
