"""Collecting garbage: files that no version needs, and versions that nobody wants any more.

Why a commit never loses a file to it:

1. A file is garbage if no version that is kept lists it, and it is older than a grace period. The period protects the
   *work* of a running job (shards that are written and not yet committed). Nothing below depends on it, or on clocks.
2. Before anything is deleted, the collection itself commits a version N + 1 which names the garbage (``collecting``)
   and lists none of it. A writer that prepared its commit from version N now loses the race for that number and reads
   N + 1; a writer that won it first makes the collection look again, and then its files are no garbage.
3. While ``collecting`` names a file, no commit may add it (`commits.publish_next`), and later versions inherit the
   names. Only when all of it is deleted the collection commits a version without the names.
4. A commit checks that its new files are there *after* it read the version that it starts from. If that version names
   nothing, no collection is under way; one that begins later needs a version of its own, see 2.
5. So that a name that was collected may be used again, at most one collection runs: while ``collecting`` is not empty
   another one is refused. If the first was killed, a person says so (``resume``), since no clock could.
6. Manifests of versions that were given up are replaced by a tombstone and keep their names: a writer that was
   suspended for so long cannot commit under an old number.

Indexes are files of the versions that they are bound to. One that is being built has named, before it encodes anything,
the codes that it has from an earlier version. Should a collection still be faster, its builder finds a file missing and
says so; an index can always be built again.
"""

from __future__ import annotations

import datetime
import time
from dataclasses import dataclass

from clara_dist.errors import StoreError
from clara_dist.store.commits import Content, Snapshot, update
from clara_dist.store.index_manifest import INDEX_FOLDER, read_index_manifest
from clara_dist.store.manifest import (
    DELETION_FOLDER,
    MANIFEST_FOLDER,
    SHARD_FOLDER,
    TOMBSTONE,
    Manifest,
    kept_versions,
    manifest_file,
    read_manifest,
    versions,
)
from clara_dist.store.storage import Storage, StoreLocation, open_storage

GRACE_S = 24 * 3600.0
_TEMPORARY_GRACE_S = 3600.0
OPERATION = "gc"


@dataclass(frozen=True)
class CollectReport:
    """What a collection deletes, or did.

    Attributes:
        files: Files that no kept version needs.
        versions: Versions that are given up.
        n_young: Files that no version lists, but which are younger than the grace period: perhaps of a running job.
        manifest: The current version afterwards.
    """

    files: tuple[str, ...]
    versions: tuple[int, ...]
    n_young: int
    manifest: Manifest


def collect(
    store: StoreLocation,
    *,
    keep_versions: int | None = None,
    older_than_s: float | None = None,
    grace_s: float = GRACE_S,
    dry_run: bool = False,
    resume: bool = False,
) -> CollectReport:
    """Delete what no version needs.

    Without ``keep_versions`` and ``older_than_s`` all versions are kept, and only the leavings of killed jobs go.

    Args:
        store: The store's path or URL.
        keep_versions: Give up all but the newest so many (collections do not count as versions).
        older_than_s: Give up versions that are older than this; with ``keep_versions`` both must hold.
        grace_s: Files that are younger are left alone.
        dry_run: Only say what would be deleted.
        resume: Finish a collection that was killed, first. Only give it when you are sure that it is dead.

    Raises:
        StoreError: There is no store; another collection is running or was killed.
        CorruptStoreError: A manifest is damaged: what it lists is unknown, so nothing can be deleted.
    """
    storage = open_storage(store)
    head = read_manifest(storage)
    if head.collecting and (dry_run or not resume):
        raise StoreError(
            f"another `clara-dist store gc` of the store {storage.url} is running, or was killed",
            got=f"{len(head.collecting)} files, since version {head.version}",
            hint="wait for it; if you are sure that it is dead, finish its work with `--resume`",
        )
    if not dry_run:
        _finish(storage)
    found: CollectReport | None = None

    def begin(current: Snapshot) -> Content | None:
        nonlocal found
        if current.manifest.collecting:
            raise StoreError(f"another `clara-dist store gc` of the store {storage.url} has begun")
        found = _plan(storage, current.manifest, keep_versions, older_than_s, grace_s)
        if dry_run or not (found.files or found.versions):
            return None
        manifest = current.manifest
        oldest = max(found.versions, default=manifest.oldest_version - 1) + 1
        return Content(manifest.shards, current.deletions, collecting=found.files, oldest_version=oldest)

    update(storage, OPERATION, begin)
    assert found is not None  # `update` called `begin`
    if dry_run or not (found.files or found.versions):
        return found
    return CollectReport(found.files, found.versions, found.n_young, _finish(storage))


def _plan(
    storage: Storage, head: Manifest, keep: int | None, older_than_s: float | None, grace_s: float
) -> CollectReport:
    if keep is not None and keep < 1:
        raise StoreError("the current version cannot be given up", got=f"keep {keep} versions", expected="at least 1")
    kept = [read_manifest(storage, version) for version in kept_versions(storage) if version <= head.version]
    given_up = _given_up(kept, keep, older_than_s)
    wanted = kept[len(given_up) :]
    needed = set().union(*(manifest.files for manifest in wanted), *(_index_of(storage, each) for each in wanted))
    garbage, n_young = [], 0
    for folder in (SHARD_FOLDER, DELETION_FOLDER, INDEX_FOLDER, MANIFEST_FOLDER):
        for name, modified_at in storage.modified_at(folder).items():
            file = f"{folder}/{name}"
            is_manifest = folder == MANIFEST_FOLDER and not name.startswith(".")
            if is_manifest or file in needed:
                continue
            # A temporary file's writer is at work on it right now, or dead.
            if time.time() - modified_at < (max(grace_s, _TEMPORARY_GRACE_S) if name.startswith(".") else grace_s):
                n_young += 1
            else:
                garbage.append(file)
    return CollectReport(tuple(sorted(garbage)), tuple(manifest.version for manifest in given_up), n_young, head)


def _index_of(storage: Storage, manifest: Manifest) -> set[str]:
    """Files of a version's index; not of one that a deleted store of the same path left under the same number."""
    index = read_index_manifest(storage, manifest.version)
    return set() if index is None or index.commit_id != manifest.commit_id else index.files


def _given_up(kept: list[Manifest], keep: int | None, older_than_s: float | None) -> list[Manifest]:
    """The oldest versions, as far as both conditions reach; never the current one."""
    if keep is None and older_than_s is None:
        return []
    n = len(kept) - 1
    if keep is not None:
        real = [index for index, manifest in enumerate(kept) if manifest.operation != OPERATION]
        # Counted from the newest version that has contents of its own: collections after it repeat it.
        n = min(n, real[-keep] if len(real) >= keep else 0)
    if older_than_s is not None:
        until = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=older_than_s)
        young = [i for i, m in enumerate(kept) if datetime.datetime.fromisoformat(m.created_at) > until]
        n = min(n, young[0] if young else n)
    return kept[:n]


def _finish(storage: Storage) -> Manifest:
    """Delete what the current version names, and commit that it is done."""
    head = read_manifest(storage)
    # First the versions, so that none can be opened half.
    for version in versions(storage):
        file = manifest_file(version)
        if version < head.oldest_version and storage.size_bytes(file) != len(TOMBSTONE):
            storage.publish(file, TOMBSTONE, exclusive=False)
    for file in head.collecting:
        storage.delete(file)

    def done(current: Snapshot) -> Content | None:
        if not current.manifest.collecting:
            return None
        return Content(current.manifest.shards, current.deletions, collecting=())

    return update(storage, OPERATION, done)
