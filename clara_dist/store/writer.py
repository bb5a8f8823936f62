"""Writing a store: shards first, from any number of processes; the manifest last, from one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from clara_dist.errors import CommitConflictError, StoreError
from clara_dist.store.commits import Content, Snapshot, publish_next
from clara_dist.store.deletions import Deletions, live_rows
from clara_dist.store.fingerprint import Fingerprint
from clara_dist.store.manifest import SHARD_FOLDER, Manifest, ShardInfo, shard_file, versions
from clara_dist.store.schema import StoreSchema
from clara_dist.store.shard import (
    describe,
    documents_of,
    find_duplicates,
    read_batch,
    read_doc_ids,
    reading,
    serialize,
)
from clara_dist.store.storage import ReadableFiles, Storage, StoreLocation, at_once, open_storage


def write_shard(store: StoreLocation, table: pa.Table, name: str) -> ShardInfo:
    """Write one shard, whole or not at all. No version of the store sees it before a commit lists it.

    Of all who write the same name, at once or one after the other, the first one wins: a published shard never
    changes, so what was said of it stays true. The others get the description of what is there, which holds the same
    documents; their memories may differ by rounding, where another kind of processor computed them.

    Args:
        store: The store's path or URL; made if it does not exist.
        table: What `StoreSchema.to_table` gave. It is held in memory twice while it is written; a
            `ShardDraft` is not.
        name: Name of the shard, the same for the same documents and the same model.

    Raises:
        StoreError: A bad name, or other documents under this name.
        CorruptStoreError: A damaged file under this name.
    """
    return publish_shard(store, serialize(table), name)


def publish_shard(store: StoreLocation, data: pa.Buffer, name: str) -> ShardInfo:
    """`write_shard` of the file's bytes: what `ShardDraft.finish` gave.

    Raises:
        StoreError: As `write_shard`.
    """
    storage = open_storage(store)
    file = shard_file(name)
    try:
        storage.publish(file, data, exclusive=True)
    except FileExistsError:
        return _published_before(storage, file, data)
    return describe(file, data, documents_of(data))


def _published_before(storage: Storage, file: str, data: pa.Buffer) -> ShardInfo:
    with reading(storage.url, file):
        with storage.open(file) as source:
            found = source.read_buffer()
        documents = documents_of(found)
    if not documents.equals(documents_of(data)):
        raise StoreError(
            f"the shard {file} of the store {storage.url} holds other documents and may not change",
            hint="write these documents under another shard name",
        )
    return describe(file, found, documents)


def shard_names(store: StoreLocation) -> list[str]:
    """Names of all finished shards, committed or not, sorted: what a job that runs again need not do again."""
    return [
        name.removesuffix(".arrow") for name in open_storage(store).list_files(SHARD_FOLDER) if name.endswith(".arrow")
    ]


def describe_shard(store: StoreLocation, schema: StoreSchema, name: str) -> ShardInfo:
    """Read back what `write_shard` returned for a finished shard.

    Raises:
        CorruptStoreError: The shard is missing, unreadable or not of this schema.
    """
    storage = open_storage(store)
    file = shard_file(name)
    with reading(storage.url, file):
        with storage.open(file) as source:
            data = source.read_buffer()
        return describe(file, data, read_batch(pa.BufferReader(data), schema))


def commit(
    store: StoreLocation,
    schema: StoreSchema,
    fingerprint: Fingerprint,
    shards: Sequence[ShardInfo],
    *,
    parent: int | None = None,
    writer_info: Mapping[str, Any] | None = None,
) -> Manifest:
    """Make finished shards the next version of a store, whatever it held before, in one atomic step.

    Args:
        store: The store's path or URL.
        schema: Shape of all its rows.
        fingerprint: The model that wrote the memories.
        shards: ALL shards of the new version, in corpus order; no row of them is deleted. To add to what is there, see
            `append_shards`.
        parent: The version that the caller started from; None for a new store.
        writer_info: Facts about the job, kept in the manifest.

    Returns:
        The new version's manifest.

    Raises:
        CommitConflictError: The store is no longer at ``parent``; nothing was changed.
        FingerprintMismatchError: Shards of the parent are kept, and another model wrote them.
        StoreError: Shards of the parent are kept that have another schema; a shard or a ``doc_id`` comes twice.
        CorruptStoreError: A shard is missing or not what its `ShardInfo` says.
    """
    storage = open_storage(store)
    known = versions(storage)
    current = known[-1] if known else None
    if current != parent:
        raise CommitConflictError(
            f"the store {storage.url} is not at the version that this commit starts from",
            got=f"version {current}" if current else "no version yet",
            expected=f"version {parent}" if parent else "a new store",
            hint="read the current version and commit on top of it",
        )
    before = None if parent is None else Snapshot.read(storage, parent)
    # A version may replace all shards by another model's, but never mix two models.
    if before and {shard.file for shard in before.manifest.shards} & {shard.file for shard in shards}:
        require_same_kind(storage, before.manifest, schema, fingerprint, "the new shards")
    require_distinct(storage, schema, shards)
    return publish_next(storage, before, Content(tuple(shards)), schema, fingerprint, "compress", writer_info)


def require_same_kind(
    storage: Storage, manifest: Manifest, schema: StoreSchema, fingerprint: Fingerprint, what: str
) -> None:
    """Refuse shards that cannot stand beside a store's.

    Raises:
        FingerprintMismatchError: Another model wrote them.
        StoreError: They have other columns.
    """
    manifest.fingerprint.require_match(fingerprint, f"the store {storage.url}", what)
    if manifest.schema != schema:
        raise StoreError(f"the columns of {what} differ from the store's", got=schema, expected=manifest.schema)


def require_distinct(
    storage: Storage, schema: StoreSchema, shards: Sequence[ShardInfo], deletions: Deletions | None = None
) -> None:
    """Refuse shards that list a file or hold a document twice; reads all ids.

    Raises:
        StoreError: They do.
        CorruptStoreError: A shard is missing or not what its `ShardInfo` says.
    """
    files = [info.file for info in shards]
    if len(set(files)) != len(files):
        raise StoreError("a shard is listed twice", got=sorted({file for file in files if files.count(file) > 1}))
    deletions = deletions or {}
    ids = at_once(lambda info: live_ids(storage, info, schema, deletions.get(info.file)), shards)
    duplicates = find_duplicates(dict(zip(files, ids, strict=True)))
    if duplicates:
        listed = "; ".join(f"{doc_id!r} in {' and '.join(where)}" for doc_id, where in duplicates.items())
        raise StoreError(
            "documents come more than once",
            got=listed,
            expected="every doc_id once in a store",
            hint="remove the repeated rows",
        )


def live_ids(
    storage: ReadableFiles, info: ShardInfo, schema: StoreSchema, deleted: np.ndarray | None
) -> pa.StringArray:
    """Ids of a shard's documents without the deleted ones. Raises what `read_doc_ids` raises."""
    ids = read_doc_ids(storage, info, schema)
    return ids if deleted is None else ids.take(pa.array(live_rows(info.rows, deleted)))
