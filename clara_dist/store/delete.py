"""Documents that leave a store, and versions that come back. Shards stay as they are; `compact` frees the space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clara_dist.errors import StoreError
from clara_dist.store.commits import Content, Snapshot, update
from clara_dist.store.deletions import live_rows, with_deleted
from clara_dist.store.manifest import Manifest, ShardInfo
from clara_dist.store.shard import read_columns
from clara_dist.store.storage import Storage, StoreLocation, open_storage
from clara_dist.store.where import Filter, Where, parse_where

_NAMED = 5


@dataclass(frozen=True)
class DeleteReport:
    """What `delete` did.

    Attributes:
        manifest: Of the new version; of the current one if nothing was to be deleted.
        n_deleted: Documents that left.
        missing: Ids that are not in the store.
    """

    manifest: Manifest
    n_deleted: int
    missing: tuple[str, ...]


def delete(
    store: StoreLocation,
    *,
    doc_ids: Sequence[str] | None = None,
    where: Filter | None = None,
    missing_ok: bool = False,
) -> DeleteReport:
    """Commit a version without some documents.

    Args:
        store: The store's path or URL.
        doc_ids: Delete these. The id of a long document that was cut into passages deletes all of them.
        where: Delete the documents that this filter lets through, see `parse_where`.
        missing_ok: Go on without ids that are not in the store.

    Raises:
        StoreError: Neither or both of ``doc_ids`` and ``where`` are given, or an id is not in the store.
        FilterError: ``where`` cannot be read, or does not fit the store's columns.
        CommitConflictError: Other writers were faster, a hundred times in a row.
    """
    if bool(doc_ids) == bool(where):
        raise StoreError("delete needs either ids or a filter", got="both" if doc_ids else "neither")
    storage = open_storage(store)
    wanted = pa.array(sorted(set(doc_ids or ())), pa.string())
    missing: tuple[str, ...] = ()
    n_deleted = 0

    def change(head: Snapshot) -> Content | None:
        nonlocal missing, n_deleted
        condition = parse_where(where, head.manifest.schema) if where else None
        found = {}
        seen: set[str] = set()
        for shard in head.manifest.shards:
            rows, names = _find(storage, head, shard, wanted, condition)
            seen.update(names)
            if len(rows):
                found[shard.file] = rows
        missing = tuple(doc_id for doc_id in wanted.to_pylist() if doc_id not in seen)
        n_deleted = sum(map(len, found.values()))
        if missing and not missing_ok:
            raise StoreError(
                f"{len(missing)} of the documents to delete are not in the store {storage.url}; nothing was deleted",
                got=", ".join(map(repr, missing[:_NAMED])) + (", ..." if len(missing) > _NAMED else ""),
                hint="allow it with missing-ok if they may be gone already",
            )
        return Content(head.manifest.shards, with_deleted(head.deletions, found)) if found else None

    return DeleteReport(update(storage, "delete", change), n_deleted, missing)


def restore(store: StoreLocation, version: int) -> Manifest:
    """Commit a version that holds exactly what an older one does.

    Raises:
        StoreError: There is no such version, or it was given up.
    """
    storage = open_storage(store)

    def change(head: Snapshot) -> Content | None:
        wanted = Snapshot.read(storage, version)
        before, after = head.manifest, wanted.manifest
        if version < before.oldest_version:
            raise StoreError(f"version {version} of the store {storage.url} was given up by `clara-dist store gc`")
        if (before.fingerprint, before.schema) != (after.fingerprint, after.schema):
            raise StoreError(
                f"version {version} of the store {storage.url} was written by another model, or with other columns",
                hint="read it with `--version`, or compress its corpus again",
            )
        return Content(after.shards, wanted.deletions)

    return update(storage, "restore", change, {"restored_version": version})


def _find(
    storage: Storage,
    head: Snapshot,
    shard: ShardInfo,
    wanted: pa.StringArray,
    where: Where | None,
) -> tuple[np.ndarray, list[str]]:
    """Live rows of a shard that are to be deleted, and the wanted names that they go by."""
    schema = head.manifest.schema
    live = live_rows(shard.rows, head.deletions.get(shard.file))
    if where is not None:
        return live[where.matches(read_columns(storage, shard, schema, where.arrow_columns))[live]], []
    # Both names of a passage: its own, and that of the document that it was cut from.
    batch = read_columns(storage, shard, schema, ["doc_id", "parent_id"]).take(pa.array(live))
    hit = np.zeros(len(live), np.bool_)
    names: list[str] = []
    for column in batch.columns:
        same = pc.is_in(column, wanted)
        hit |= same.to_numpy(zero_copy_only=False)
        names += pc.unique(column.filter(same)).to_pylist()
    return live[hit], names
