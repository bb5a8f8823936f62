"""From one version to the next: the optimistic step that all operations on a store take.

A writer reads the current version, prepares the next one from it, and publishes that manifest under the next number.
Of all who do so at once the storage lets one win; the others read the winner's version and prepare theirs again. So
no lock is held and nothing is lost, whoever dies and wherever: everything else was published before, under names that
no version lists yet.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from clara_dist.errors import CommitConflictError, CorruptStoreError, StoreError
from clara_dist.store.deletions import Deletions, publish_deletions, read_deletions, same_deletions
from clara_dist.store.fingerprint import Fingerprint
from clara_dist.store.manifest import Manifest, ShardInfo, publish_manifest, read_manifest, versions
from clara_dist.store.schema import StoreSchema
from clara_dist.store.storage import Storage, StoreLocation, at_once, open_storage

# A conflict means that another writer has succeeded, so this many of them were faster, one after the other.
_ATTEMPTS = 100


@dataclass(frozen=True)
class Snapshot:
    """A version as a writer starts from it."""

    manifest: Manifest
    deletions: Deletions

    @classmethod
    def read(cls, storage: Storage, version: int | None = None) -> Snapshot:
        """Read a version; None means the current one. Raises what `read_manifest` and `read_deletions` raise."""
        manifest = read_manifest(storage, version)
        try:
            return cls(manifest, read_deletions(storage, manifest))
        except CorruptStoreError:
            if version is None and versions(storage)[-1] != manifest.version:
                return cls.read(storage)  # it was given up meanwhile, and its list deleted
            raise


@dataclass(frozen=True)
class Content:
    """What the next version holds.

    Attributes:
        shards: All its shards, in corpus order.
        deletions: Their deleted rows.
        collecting: As in `Manifest`; None: as before.
        oldest_version: As in `Manifest`; None: as before.
    """

    shards: tuple[ShardInfo, ...]
    deletions: Deletions = field(default_factory=dict)
    collecting: tuple[str, ...] | None = None
    oldest_version: int | None = None


def update(
    store: StoreLocation,
    operation: str,
    change: Callable[[Snapshot], Content | None],
    writer_info: Mapping[str, Any] | None = None,
) -> Manifest:
    """Commit a change of whatever the current version is.

    Args:
        store: The store's path or URL.
        operation: What the manifest says of it.
        change: Makes the next content from the current version, again for every attempt; None: nothing to do.
        writer_info: Facts about the job, kept in the manifest.

    Returns:
        The new version's manifest, or the current one's if there was nothing to do.

    Raises:
        CommitConflictError: Other writers were faster, a hundred times in a row.
        StoreError: There is no store; a file is being collected; whatever ``change`` raises.
    """
    storage = open_storage(store)
    for attempt in range(1, _ATTEMPTS + 1):
        head = Snapshot.read(storage)
        content = change(head)
        if content is None:
            return head.manifest
        before = head.manifest
        try:
            return publish_next(storage, head, content, before.schema, before.fingerprint, operation, writer_info)
        except CommitConflictError:
            if attempt == _ATTEMPTS:
                raise
    raise AssertionError("the loop returns or raises")


def publish_next(
    storage: Storage,
    parent: Snapshot | None,
    content: Content,
    schema: StoreSchema,
    fingerprint: Fingerprint,
    operation: str,
    writer_info: Mapping[str, Any] | None = None,
) -> Manifest:
    """Publish the version after ``parent``, or the first one.

    Raises:
        CommitConflictError: Another writer has; the store is unchanged.
        StoreError: A new file of it is being collected.
        CorruptStoreError: A new file of it is missing.
    """
    before = None if parent is None else parent.manifest
    # After `parent` was read: see `collect` for why a file that is there now cannot vanish before this commit.
    _require_files(storage, before, content)
    if parent is not None and same_deletions(parent.deletions, content.deletions):
        deletions = parent.manifest.deletions
    else:
        deletions = publish_deletions(storage, content.deletions)
    manifest = Manifest(
        version=1 if before is None else before.version + 1,
        parent=None if before is None else before.version,
        schema=schema,
        fingerprint=fingerprint,
        shards=content.shards,
        writer=dict(writer_info or {}),
        created_at=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        operation=operation,
        deletions=deletions,
        collecting=_choose(content.collecting, before.collecting if before else ()),
        oldest_version=_choose(content.oldest_version, before.oldest_version if before else 1),
    )
    try:
        publish_manifest(storage, manifest)
    except CommitConflictError:
        if deletions is not None and (before is None or deletions != before.deletions):
            storage.delete(deletions.file)  # its name is this attempt's own
        raise
    return manifest


def _require_files(storage: Storage, before: Manifest | None, content: Content) -> None:
    kept = set() if before is None else before.files
    collecting = set() if before is None else set(before.collecting)
    added = [shard for shard in content.shards if shard.file not in kept]
    for shard, size_bytes in zip(added, at_once(lambda shard: storage.size_bytes(shard.file), added), strict=True):
        if shard.file in collecting:
            raise StoreError(
                f"`clara-dist store gc` is deleting the file {shard.file} of the store {storage.url}",
                hint="wait until it has finished (`clara-dist store gc --resume` finishes one that was killed), then "
                "run this again",
            )
        if size_bytes != shard.size_bytes:
            raise CorruptStoreError(
                f"the file {shard.file} of the store {storage.url} is missing or damaged",
                got="no such file" if size_bytes is None else f"{size_bytes} bytes",
                expected=f"{shard.size_bytes} bytes",
                hint="run this again: it writes the file again",
            )


def _choose(new: Any, old: Any) -> Any:
    return old if new is None else new
