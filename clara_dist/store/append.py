"""Documents that enter a store which exists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clara_dist.errors import CommitConflictError, CorruptStoreError, StoreError
from clara_dist.store.commits import Content, Snapshot, publish_next, update
from clara_dist.store.deletions import Deletions, live_rows, same_deletions, with_deleted
from clara_dist.store.fingerprint import Fingerprint
from clara_dist.store.manifest import Manifest, ShardInfo, shard_file, versions
from clara_dist.store.schema import StoreSchema
from clara_dist.store.shard import checksum, file_checksum, find_duplicates, read_columns
from clara_dist.store.storage import Storage, StoreLocation, open_storage
from clara_dist.store.writer import require_distinct, require_same_kind

OnExisting = Literal["error", "skip", "replace"]
_NAMED = 5


@dataclass(frozen=True)
class _Rows:
    """Some rows of a shard, with their names: a document that was cut into passages comes and goes as one."""

    shard: ShardInfo
    rows: np.ndarray
    doc_ids: pa.StringArray
    parent_ids: pa.StringArray

    @classmethod
    def read(cls, storage: Storage, shard: ShardInfo, schema: StoreSchema, rows: np.ndarray) -> _Rows:
        batch = read_columns(storage, shard, schema, ["doc_id", "parent_id"]).take(pa.array(rows, pa.int64()))
        return cls(shard, rows, batch.column("doc_id"), batch.column("parent_id"))

    def select(self, keep: pa.BooleanArray) -> _Rows:
        rows = self.rows[keep.to_numpy(zero_copy_only=False)]
        return _Rows(self.shard, rows, self.doc_ids.filter(keep), self.parent_ids.filter(keep))

    def named_as(self, others: Sequence[_Rows]) -> pa.BooleanArray:
        """Which rows are of a document that ``others`` have rows of, too."""
        doc_ids = pa.chunked_array([other.doc_ids for other in others], pa.string())
        parent_ids = pa.chunked_array([other.parent_ids for other in others], pa.string())
        return pc.or_(pc.is_in(self.doc_ids, doc_ids), pc.is_in(self.parent_ids, parent_ids))


def append_shards(
    store: StoreLocation,
    schema: StoreSchema,
    fingerprint: Fingerprint,
    shards: Sequence[ShardInfo],
    *,
    on_existing: OnExisting = "error",
    deletions: Deletions | None = None,
    writer_info: Mapping[str, Any] | None = None,
) -> Manifest:
    """Add finished shards to the newest version of a store, whatever other writers do meanwhile; made if there is none.

    Doing it again changes nothing: rows that a listed shard shows already are the same documents. Rows of a listed
    shard that were deleted come back.

    Args:
        store: The store's path or URL.
        schema: Shape of the rows.
        fingerprint: The model that wrote the memories.
        shards: Only the new shards, in corpus order; they go behind those that are there.
        on_existing: What becomes of a document whose id is in the store: ``error`` refuses all of them; ``skip`` keeps
            the stored one; ``replace`` deletes it in the same version that adds the new one.
        deletions: Rows of the new shards that are not to be added.
        writer_info: Facts about the job, kept in the manifest.

    Returns:
        The manifest of the new version, or of the current one if it has all of this already.

    Raises:
        FingerprintMismatchError: Another model wrote the store.
        StoreError: The store has other columns; an id is there already, or comes twice in the new shards.
        CorruptStoreError: A shard is missing or not what its `ShardInfo` says.
        CommitConflictError: Other writers were faster, a hundred times in a row.
    """
    storage = open_storage(store)
    deletions = deletions or {}
    if not versions(storage):
        require_distinct(storage, schema, shards, deletions)
        try:
            return publish_next(
                storage, None, Content(tuple(shards), deletions), schema, fingerprint, "append", writer_info
            )
        except CommitConflictError:
            pass  # another writer made the store meanwhile: its documents come first

    def change(head: Snapshot) -> Content | None:
        require_same_kind(storage, head.manifest, schema, fingerprint, "the new shards")
        return _appended(storage, head, shards, deletions, on_existing)

    return update(storage, "append", change, writer_info)


def already_there(url: str, doc_ids: Sequence[str], n: int) -> StoreError:
    """The error for ``n`` documents that a store has already, of which it names some."""
    return StoreError(
        f"{n} of the documents are in the store {url} already; nothing was appended",
        got=", ".join(map(repr, doc_ids)) + (", ..." if n > len(doc_ids) else ""),
        hint="`on-existing` skip keeps the stored ones, replace takes the new ones",
    )


def append_store(store: StoreLocation, source: StoreLocation, *, on_existing: OnExisting = "error") -> Manifest:
    """Add the documents of another store that the same model wrote; its shards are copied, one at a time.

    Args:
        store: The store that grows; made if it does not exist.
        source: The store that is read: its newest version.
        on_existing: As for `append_shards`.

    Raises:
        StoreError: As `append_shards`.
    """
    storage, from_ = open_storage(store), open_storage(source)
    snapshot = Snapshot.read(from_)
    manifest = snapshot.manifest
    if versions(storage):
        head = Snapshot.read(storage).manifest
        require_same_kind(storage, head, manifest.schema, manifest.fingerprint, f"the store {from_.url}")
    copies = {shard.file: _copy(storage, from_, shard) for shard in manifest.shards}
    return append_shards(
        storage,
        manifest.schema,
        manifest.fingerprint,
        list(copies.values()),
        on_existing=on_existing,
        deletions={copies[file].file: rows for file, rows in snapshot.deletions.items()},
        writer_info={"source": from_.url, "source_version": manifest.version},
    )


def _copy(storage: Storage, source: Storage, shard: ShardInfo) -> ShardInfo:
    """Copy a shard under a name that follows from its bytes, so that a copy that was interrupted goes on."""
    file = shard_file(shard.checksum.rpartition(":")[2][:32])
    copy = replace(shard, file=file)
    if storage.size_bytes(file) != shard.size_bytes:
        with source.open(shard.file) as opened:
            data = opened.read_buffer()
        if checksum(data) != shard.checksum:
            raise CorruptStoreError(f"the shard {shard.file} of the store {source.url} is damaged")
        with suppress(FileExistsError):  # another writer copies the same
            storage.publish(file, data, exclusive=True)
    elif file_checksum(storage, file) != shard.checksum:
        raise CorruptStoreError(f"the shard {file} of the store {storage.url} is damaged")
    return copy


def _appended(
    storage: Storage, head: Snapshot, shards: Sequence[ShardInfo], deletions: Deletions, on_existing: OnExisting
) -> Content | None:
    """The head's content and the new rows; None if that is the same."""
    candidates = [_candidates(storage, head, shard, deletions.get(shard.file)) for shard in shards]
    repeated = find_duplicates({c.shard.file: c.doc_ids for c in candidates})
    if repeated:
        raise StoreError("documents come more than once in what is to be appended", got=", ".join(map(repr, repeated)))
    existing = _existing(storage, head, candidates)
    replaced: Deletions = {}
    if existing and on_existing == "error":
        names = pc.unique(pa.chunked_array([found.parent_ids for found in existing])).to_pylist()
        raise already_there(storage.url, names[:_NAMED], len(names))
    if existing and on_existing == "skip":
        candidates = [c.select(pc.invert(c.named_as(existing))) for c in candidates]
    if existing and on_existing == "replace":
        replaced = {found.shard.file: found.rows for found in existing}
    return _content(head, candidates, replaced)


def _content(head: Snapshot, candidates: Sequence[_Rows], replaced: Deletions) -> Content | None:
    listed = {shard.file for shard in head.manifest.shards}
    merged = with_deleted(head.deletions, replaced)
    added = []
    for c in candidates:
        if c.shard.file not in listed:
            if not len(c.rows):
                continue  # nothing of it is wanted
            added.append(c.shard)
            left_out = np.setdiff1d(np.arange(c.shard.rows), c.rows)
        else:
            left_out = np.setdiff1d(merged.pop(c.shard.file, np.empty(0, np.int32)), c.rows)
        merged = with_deleted(merged, {c.shard.file: left_out})
    if not added and same_deletions(merged, head.deletions):
        return None
    return Content((*head.manifest.shards, *added), merged)


def _candidates(storage: Storage, head: Snapshot, shard: ShardInfo, left_out: np.ndarray | None) -> _Rows:
    """Rows of a new shard that the head does not show."""
    rows = live_rows(shard.rows, left_out)
    if any(shard.file == listed.file for listed in head.manifest.shards):
        rows = np.intersect1d(rows, head.deletions.get(shard.file, np.empty(0, np.int32)))
    return _Rows.read(storage, shard, head.manifest.schema, rows)


def _existing(storage: Storage, head: Snapshot, candidates: Sequence[_Rows]) -> list[_Rows]:
    """Rows of the store that are of the candidates' documents, by shard."""
    wanted = [c for c in candidates if len(c.rows)]
    found = []
    for shard in head.manifest.shards if wanted else ():
        live = live_rows(shard.rows, head.deletions.get(shard.file))
        stored = _Rows.read(storage, shard, head.manifest.schema, live)
        same = stored.select(stored.named_as(wanted))
        if len(same.rows):
            found.append(same)
    return found
