"""Writing a store: shards first, from any number of processes; the manifest last, from one."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from clara_dist.errors import CommitConflictError, StoreError
from clara_dist.store.fingerprint import Fingerprint
from clara_dist.store.manifest import (
    SHARD_FOLDER,
    Manifest,
    ShardInfo,
    publish_manifest,
    read_manifest,
    shard_file,
    versions,
)
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
from clara_dist.store.storage import Storage, StoreLocation, open_storage


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
    """Make finished shards the next version of a store, in one atomic step.

    Args:
        store: The store's path or URL.
        schema: Shape of all its rows.
        fingerprint: The model that wrote the memories.
        shards: ALL shards of the new version, in corpus order (to append: the parent's, then the new ones).
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
    if parent is not None:
        before = read_manifest(storage, parent)
        # A version may replace all shards by another model's, but never mix two models.
        if {shard.file for shard in before.shards} & {shard.file for shard in shards}:
            before.fingerprint.require_match(fingerprint, f"the shards of the store {storage.url}", "the new shards")
            if before.schema != schema:
                raise StoreError("the new shards have another schema than the kept", got=schema, expected=before.schema)
    _check_shards(storage, schema, shards)
    manifest = Manifest(
        version=(parent or 0) + 1,
        parent=parent,
        schema=schema,
        fingerprint=fingerprint,
        shards=tuple(shards),
        writer=dict(writer_info or {}),
        created_at=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )
    publish_manifest(storage, manifest)
    return manifest


def _check_shards(storage: Storage, schema: StoreSchema, shards: Sequence[ShardInfo]) -> None:
    files = [info.file for info in shards]
    if len(set(files)) != len(files):
        raise StoreError("a shard is listed twice", got=sorted({file for file in files if files.count(file) > 1}))
    duplicates = find_duplicates({info.file: read_doc_ids(storage, info, schema) for info in shards})
    if duplicates:
        listed = "; ".join(f"{doc_id!r} in {' and '.join(where)}" for doc_id, where in duplicates.items())
        raise StoreError(
            "documents come more than once",
            got=listed,
            expected="every doc_id once in a store",
            hint="remove the repeated rows",
        )
