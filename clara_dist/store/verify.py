"""Looking at a store without using it: its facts, and every byte of damage."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from clara_dist.errors import CorruptStoreError
from clara_dist.store.deletions import Deletions, count_documents, live_rows, read_deletions
from clara_dist.store.manifest import (
    DELETION_FOLDER,
    SHARD_FOLDER,
    Manifest,
    ShardInfo,
    find_manifest,
    kept_versions,
    manifest_file,
    read_manifest,
    versions,
)
from clara_dist.store.schema import StoreSchema, memory_norms, nonfinite_rows
from clara_dist.store.shard import Shard, describe, file_checksum, find_duplicates, open_shard
from clara_dist.store.storage import Storage, StoreLocation, open_storage

# A norm is a float64 sum rounded to float32; another order of summing moves it by one unit in the last place, 6e-8.
_NORM_RTOL = 1e-6


@dataclass(frozen=True)
class StoreInfo:
    """What `info` tells of a store's version.

    Attributes:
        url: The store.
        manifest: Of the version; its ``n_documents`` counts rows.
        versions: Those that can be opened.
        n_documents: Documents; those that were cut into passages count once.
    """

    url: str
    manifest: Manifest
    versions: tuple[int, ...]
    n_documents: int


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and the file it is wrong in."""

    file: str
    what: str


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
        url: The store.
        version: The version that was verified.
        n_shards: Shards that were read.
        n_documents: Documents that the manifest lists.
        size_bytes: Bytes that were compared with their checksums.
        problems: All damage, in the order of the manifest.
        unlisted_files: Files among the shards and deletions that no version lists: the work of a job that is running or
            was killed, or strays. They do no harm, so they are no problems.
    """

    url: str
    version: int
    n_shards: int
    n_documents: int
    size_bytes: int
    problems: tuple[Problem, ...]
    unlisted_files: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


def info(store: StoreLocation, version: int | None = None) -> StoreInfo:
    """Read a version's manifest.

    Raises:
        StoreError: There is no store, or no such version.
        CorruptStoreError: The manifest is damaged.
    """
    storage = open_storage(store)
    manifest = read_manifest(storage, version)
    return StoreInfo(storage.url, manifest, tuple(kept_versions(storage)), count_documents(storage, manifest))


def history(store: StoreLocation) -> list[Manifest]:
    """Manifests of all versions that can be opened, ascending.

    Raises:
        StoreError: There is no store.
        CorruptStoreError: A manifest is damaged.
    """
    storage = open_storage(store)
    return [read_manifest(storage, version) for version in kept_versions(storage)]


def verify(store: StoreLocation, version: int | None = None) -> VerifyReport:
    """Read all bytes of a version and compare them with what the manifest says.

    Args:
        store: The store's path or URL.
        version: None means the current one.

    Raises:
        StoreError: There is no store, or no such version. Damage is reported, never raised.
    """
    storage = open_storage(store)
    problems: list[Problem] = []
    listed: set[str] = set()
    for known in versions(storage):
        try:
            found_manifest = find_manifest(storage, known)
            listed |= found_manifest.files if found_manifest else set()
        except CorruptStoreError as error:
            problems.append(Problem(manifest_file(known), error.got or error.what))
    try:
        manifest = read_manifest(storage, version)
    except CorruptStoreError:
        return VerifyReport(storage.url, version or versions(storage)[-1], 0, 0, 0, tuple(problems), ())
    deletions: Deletions = {}
    try:
        deletions = read_deletions(storage, manifest)
    except CorruptStoreError as error:
        problems.append(Problem(manifest.deletions.file if manifest.deletions else "", error.got or error.what))
    # Hashing and the float16 checks leave the interpreter lock, so threads use all cores.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        checked = list(pool.map(lambda shard: verify_shard(storage, shard, manifest.schema), manifest.shards))
    doc_ids: dict[str, pa.StringArray] = {}
    for shard_info, (ids, found) in zip(manifest.shards, checked, strict=True):
        problems += found
        if ids is not None:
            doc_ids[shard_info.file] = ids.take(pa.array(live_rows(len(ids), deletions.get(shard_info.file))))
    for doc_id, files in find_duplicates(doc_ids).items():
        problems.append(Problem(files[-1], f"document {doc_id!r} comes {len(files)} times, in {', '.join(files)}"))
    return VerifyReport(
        url=storage.url,
        version=manifest.version,
        n_shards=len(manifest.shards),
        n_documents=manifest.n_documents,
        size_bytes=manifest.size_bytes,
        problems=tuple(problems),
        unlisted_files=tuple(
            file
            for folder in (DELETION_FOLDER, SHARD_FOLDER)
            for file in (f"{folder}/{name}" for name in storage.list_files(folder))
            if file not in listed
        ),
    )


@dataclass(frozen=True)
class _Fetched:
    """A file of a store, read once for all checks: the mapping of a local one, the bytes of a remote one."""

    url: str
    data: pa.Buffer

    def size_bytes(self, file: str) -> int:
        return self.data.size

    def open(self, file: str) -> pa.NativeFile:
        return pa.BufferReader(self.data)


def verify_shard(
    storage: Storage, shard_info: ShardInfo, schema: StoreSchema
) -> tuple[pa.StringArray | None, list[Problem]]:
    """Check one shard: size, checksum, columns, ids, finite memories, norms.

    Returns:
        Its ids (None if it is too damaged to read them) and what is wrong with it.
    """
    file = shard_info.file
    try:
        with storage.open(file) as source:
            fetched = _Fetched(storage.url, source.read_buffer())
        shard = open_shard(fetched, shard_info, schema, row_offset=0)
        found = file_checksum(fetched, file)
        if found != shard_info.checksum:
            # The contents of bytes that are known to be wrong say nothing more.
            return None, [
                Problem(file, f"its bytes changed: checksum {found}, the manifest says {shard_info.checksum}")
            ]
        shard.batch.validate(full=True)
    except CorruptStoreError as error:
        return None, [Problem(file, error.got or error.what)]
    except FileNotFoundError:
        return None, [Problem(file, "the file is missing")]
    except (pa.ArrowException, OSError) as error:
        return None, [Problem(file, f"{type(error).__name__}: {error}")]
    return shard.doc_ids, [Problem(file, what) for what in _wrong_contents(shard)]


def _wrong_contents(shard: Shard) -> list[str]:
    """What a sound checksum does not rule out: a shard that was written wrong."""
    wrong = []
    ids = shard.doc_ids
    told = describe(shard.info.file, pa.py_buffer(b""), shard.batch)
    if (told.min_doc_id, told.max_doc_id) != (shard.info.min_doc_id, shard.info.max_doc_id):
        wrong.append(f"its ids run from {told.min_doc_id!r} to {told.max_doc_id!r}, the manifest says otherwise")
    if (told.documents, told.truncated) != (shard.info.documents, shard.info.truncated):
        wrong.append(f"it has {told.documents} documents, {told.truncated} truncated rows; the manifest says otherwise")
    bad_S = nonfinite_rows(shard.memory_SMD)
    if bad_S.any():
        wrong.append(
            f"{int(bad_S.sum())} memories are not finite, the first of document {ids[int(bad_S.argmax())].as_py()!r}"
        )
    with np.errstate(invalid="ignore", over="ignore"):
        off_S = ~np.isclose(shard.norms_S, memory_norms(shard.memory_SMD), rtol=_NORM_RTOL, atol=0) & ~bad_S
    if off_S.any():
        first = ids[int(off_S.argmax())].as_py()
        wrong.append(f"{int(off_S.sum())} norms do not match their memories, the first of document {first!r}")
    return wrong
