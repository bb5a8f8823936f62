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
    file_checksum,
    find_duplicates,
    read_batch,
    read_doc_ids,
    reading,
    serialize,
)
from clara_dist.store.storage import Storage, StoreLocation, open_storage


def write_shard(store: StoreLocation, table: pa.Table, name: str) -> ShardInfo:
    """Write one shard, whole or not at all. No version of the store sees it before a commit lists it.

    Writing the same name again replaces the shard, so a task that is retried leaves one file. A shard that a version
    already lists is immutable: the same bytes are accepted, other bytes are refused.

    Args:
        store: The store's path or URL; made if it does not exist.
        table: What `StoreSchema.to_table` gave. It is held in memory twice while it is written; a
            `ShardDraft` is not.
        name: Name of the shard, the same for the same documents.

    Raises:
        StoreError: A bad name, or other bytes under the name of a committed shard.
    """
    return publish_shard(store, serialize(table), table.column("doc_id"), name)


def publish_shard(store: StoreLocation, data: pa.Buffer, doc_ids: pa.Array | pa.ChunkedArray, name: str) -> ShardInfo:
    """`write_shard` of the file's bytes: what `ShardDraft.finish` gave.

    Raises:
        StoreError: As `write_shard`.
    """
    storage = open_storage(store)
    file = shard_file(name)
    info = describe(file, data, doc_ids)
    try:
        storage.publish(file, data, exclusive=True)
    except FileExistsError:
        if storage.size_bytes(file) == info.size_bytes and file_checksum(storage, file) == info.checksum:
            return info
        for version in versions(storage):
            if any(shard.file == file for shard in read_manifest(storage, version).shards):
                raise StoreError(
                    f"the shard {file} of the store {storage.url} belongs to version {version} and may not change",
                    hint="write the new documents under another shard name",
                ) from None
        storage.publish(file, data, exclusive=False)
    return info


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
        return describe(file, data, read_batch(pa.BufferReader(data), schema).column("doc_id"))


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
