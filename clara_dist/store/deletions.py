"""Deleted rows: one immutable file lists those of all shards of a version, so that shards never change."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clara_dist.store.manifest import DELETION_FOLDER, DeletionInfo, Manifest, ShardInfo
from clara_dist.store.shard import checksum, read_columns, reading, serialize
from clara_dist.store.storage import ReadableFiles, Storage

# File of a shard -> its deleted rows, int32, ascending; only shards that have any.
Deletions = Mapping[str, np.ndarray]

_SCHEMA = pa.schema(
    [pa.field("shard", pa.string(), nullable=False), pa.field("rows", pa.list_(pa.int32()), nullable=False)]
)


def live_rows(n_rows: int, deleted: np.ndarray | None) -> np.ndarray:
    """Rows of a shard that are not deleted, int64, ascending."""
    live = np.ones(n_rows, np.bool_)
    if deleted is not None:
        live[deleted] = False
    return np.flatnonzero(live)


def count_rows(deletions: Deletions) -> int:
    """Deleted rows of all shards."""
    return sum(len(rows) for rows in deletions.values())


def with_deleted(deletions: Deletions, more: Deletions) -> dict[str, np.ndarray]:
    """Both of two sets of deleted rows."""
    merged = dict(deletions)
    for file, rows in more.items():
        if len(rows):
            merged[file] = np.union1d(merged.get(file, np.empty(0, np.int32)), rows).astype(np.int32)
    return merged


def same_deletions(a: Deletions, b: Deletions) -> bool:
    """Whether two sets of deleted rows are equal."""
    return a.keys() == b.keys() and all(np.array_equal(rows, b[file]) for file, rows in a.items())


def count_documents(storage: ReadableFiles, manifest: Manifest) -> int:
    """Documents of a version; those that were cut into passages count once.

    Raises:
        CorruptStoreError: The list of deletions, or a shard that has some, is damaged.
    """
    deletions = read_deletions(storage, manifest)
    n = 0
    for shard in manifest.shards:
        if shard.file in deletions:
            parents = read_columns(storage, shard, manifest.schema, ["parent_id"]).column("parent_id")
            n += pc.count_distinct(parents.take(pa.array(live_rows(shard.rows, deletions[shard.file])))).as_py()
        else:
            n += shard.documents
    return n


def publish_deletions(storage: Storage, deletions: Deletions) -> DeletionInfo | None:
    """Write the list of a version that is to be committed; None if nothing is deleted."""
    if not deletions:
        return None
    files = sorted(deletions)
    rows = pa.array([deletions[file].astype(np.int32) for file in files], pa.list_(pa.int32()))
    data = serialize(pa.Table.from_arrays([pa.array(files, pa.string()), rows], schema=_SCHEMA))
    # A name of its own for every list: no other writer and no collection ever has to do with it.
    file = f"{DELETION_FOLDER}/{uuid.uuid4().hex}.arrow"
    storage.publish(file, data, exclusive=True)
    return DeletionInfo(file, count_rows(deletions), data.size, checksum(data))


def read_deletions(storage: ReadableFiles, manifest: Manifest) -> dict[str, np.ndarray]:
    """The deleted rows of a version. The list is small, so its checksum is compared at every reading.

    Raises:
        CorruptStoreError: The list is missing or damaged: rows would come back, or others be hidden.
    """
    return {} if manifest.deletions is None else read_list(storage, manifest.deletions, manifest.shards)


def read_list(storage: ReadableFiles, info: DeletionInfo, shards: Sequence[ShardInfo]) -> dict[str, np.ndarray]:
    """`read_deletions` of one list."""
    with reading(storage.url, info.file):
        with storage.open(info.file) as source:
            data = source.read_buffer()
        if (data.size, checksum(data)) != (info.size_bytes, info.checksum):
            raise ValueError(f"{data.size} bytes with checksum {checksum(data)}, the manifest says {info.checksum}")
        batch = pa.ipc.open_file(data).get_batch(0)
        found = {
            file: rows.values.to_numpy().copy()
            for file, rows in zip(batch.column("shard").to_pylist(), batch.column("rows"), strict=True)
        }
        sizes = {shard.file: shard.rows for shard in shards}
        for file, rows in found.items():
            if not len(rows) or rows[0] < 0 or rows[-1] >= sizes[file] or (np.diff(rows) <= 0).any():
                raise ValueError(f"it lists rows that {file} does not have")
        if count_rows(found) != info.rows:
            raise ValueError(f"it lists {count_rows(found)} rows, the manifest says {info.rows}")
        return found
