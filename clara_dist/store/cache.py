"""Shards of remote stores as files of this machine, so that they are mapped like those of a local store.

One directory, ``CLARA_CACHE_DIR``, for all stores and all processes of a machine. A shard's file is named by its
checksum and was compared with it before it got that name, so what is there is right, whatever store it came from.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from clara_dist.errors import CorruptStoreError, StoreError
from clara_dist.store.manifest import ShardInfo
from clara_dist.store.storage import ReadableFiles, Storage, at_once, is_url

_logger = logging.getLogger(__name__)
_CHUNK_BYTES = 8 << 20
_SHARD, _PART = ".arrow", ".part"
_HINT = "set CLARA_CACHE_DIR to a larger disk, or raise CLARA_CACHE_MAX_BYTES"


def local_shards(storage: Storage, shards: Sequence[ShardInfo]) -> ReadableFiles:
    """These shards of a store, as files that can be mapped: a local store's own, or copies in this machine's cache.

    Raises:
        StoreError: The cache is too small, its disk is full, or the service cannot be reached.
        CorruptStoreError: A shard is missing, or its bytes are not those of its checksum.
    """
    return ShardCache.from_environment().fetch(storage, shards) if is_url(storage.url) else storage


@dataclass(frozen=True)
class CacheCounts:
    """Shards that stores of this process wanted: found in the cache, and downloaded into it."""

    hits: int
    misses: int


_counting = threading.Lock()
_counts = CacheCounts(0, 0)


def cache_counts() -> CacheCounts:
    """What the caches of this process did since it started."""
    return _counts


def _count(hits: int, misses: int) -> None:
    global _counts
    with _counting:
        _counts = CacheCounts(_counts.hits + hits, _counts.misses + misses)


class ShardCache:
    """A directory of shards, by checksum.

    Args:
        folder: The directory; made when it is needed.
        max_bytes: Its limit. Without one it may fill its disk. Shards that were opened longest ago go first; who has
            one mapped can go on reading it, and its space returns when the last one closes it.
    """

    def __init__(self, folder: Path, max_bytes: int | None = None) -> None:
        self.folder = folder
        self.max_bytes = max_bytes

    @classmethod
    def from_environment(cls) -> ShardCache:
        """The cache that ``CLARA_CACHE_DIR`` and ``CLARA_CACHE_MAX_BYTES`` describe.

        Raises:
            StoreError: The limit is no number.
        """
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(os.environ.get("CLARA_CACHE_DIR") or Path(home, "clara_dist"))
        limit = os.environ.get("CLARA_CACHE_MAX_BYTES")
        if limit is not None and not limit.isdecimal():
            raise StoreError("CLARA_CACHE_MAX_BYTES is no number of bytes", got=limit, expected="such as 500000000000")
        return cls(folder.expanduser().absolute(), None if limit is None else int(limit))

    def fetch(self, storage: Storage, shards: Sequence[ShardInfo]) -> CachedShards:
        """Download what is missing, several shards at once.

        Raises:
            StoreError, CorruptStoreError: As `local_shards`.
        """
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
        wanted = {self._path(shard): shard for shard in shards}
        missing = [shard for path, shard in wanted.items() if not _use(path)]
        _count(len(wanted) - len(missing), len(missing))
        if missing:
            n_bytes = sum(shard.size_bytes for shard in missing)
            self._make_room(n_bytes, wanted)
            _logger.info(
                "downloading %d of %d shards, %d bytes, of %s", len(missing), len(shards), n_bytes, storage.url
            )
            at_once(lambda shard: self._download(storage, shard), missing)
        return CachedShards(self, storage, {shard.file: shard for shard in shards})

    def open(self, storage: Storage, shard: ShardInfo) -> pa.NativeFile:
        """Map a shard's file, downloading it first if another process made room of it meanwhile."""
        path = self._path(shard)
        while True:
            try:
                return pa.memory_map(str(path))
            except FileNotFoundError:
                self._download(storage, shard)

    def _path(self, shard: ShardInfo) -> Path:
        return self.folder / f"{shard.checksum.replace(':', '-')}{_SHARD}"

    def _download(self, storage: Storage, shard: ShardInfo) -> None:
        path = self._path(shard)
        with self._writing(), _lone(path.with_suffix(_PART)) as part:
            if path.exists():
                return  # another process was faster
            found = _copy(storage, shard, part)
            if found != shard.checksum:
                raise _damaged(storage, shard, f"{part.tell()} bytes with checksum {found}")
            os.replace(part.name, path)

    def _make_room(self, n_bytes: int, keep: dict[Path, ShardInfo]) -> None:
        """Delete the shards that were used longest ago until ``n_bytes`` more fit, but none of ``keep``.

        Raises:
            StoreError: They cannot fit.
        """
        found = []
        for path in self.folder.iterdir():
            try:
                found.append((path.stat().st_mtime_ns, path.stat().st_size, path))
            except FileNotFoundError:  # another process finished or deleted it
                continue
        used = sum(size for _, size, _ in found)
        room = used + shutil.disk_usage(self.folder).free
        if self.max_bytes is not None:
            room = min(room, self.max_bytes)
        needed = sum(shard.size_bytes for shard in keep.values())
        if needed > room:
            raise StoreError(
                f"the cache {self.folder} is too small for the store's shards",
                got=f"room for {room} bytes",
                expected=f"{needed} bytes",
                hint=_HINT,
            )
        excess = used + n_bytes - room
        for _, size, path in sorted(found):
            if excess > 0 and path not in keep and path.with_suffix(_SHARD) not in keep and _remove(path):
                excess -= size

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (StoreError, FileNotFoundError):
            raise
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise StoreError(
                f"the disk of the cache {self.folder} is full" if full else f"cannot write to the cache {self.folder}",
                got=error.strerror or error,
                hint=_HINT if full else "set CLARA_CACHE_DIR to a directory that may be written",
            ) from error


@dataclass(frozen=True)
class CachedShards:
    """Shards of a remote store in the cache, by the files' names in the store."""

    cache: ShardCache
    storage: Storage
    shards: dict[str, ShardInfo]

    @property
    def url(self) -> str:
        """The store that they are of."""
        return self.storage.url

    def size_bytes(self, file: str) -> int | None:
        """Size of a shard, which was compared when it was downloaded."""
        return self.shards[file].size_bytes if file in self.shards else None

    def open(self, file: str) -> pa.NativeFile:
        """Map a shard."""
        return self.cache.open(self.storage, self.shards[file])


def _use(path: Path) -> bool:
    """Note that a file is used now; False if it is not there."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _remove(path: Path) -> bool:
    """Delete a shard, or a partial file unless somebody is writing it."""
    try:
        if path.suffix == _PART:
            with open(path, "rb") as part:
                fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        else:
            path.unlink()
    except (FileNotFoundError, BlockingIOError):
        return False
    return True


@contextmanager
def _lone(path: Path) -> Iterator[BinaryIO]:
    """An empty file that this process alone writes; it waits for another that does. Unless renamed, it goes at the end.

    The lock is on the file itself, and the kernel drops it with its holder, so a killed process is in nobody's way.
    """
    while True:
        with open(path, "ab") as part:
            fcntl.flock(part, fcntl.LOCK_EX)
            if not _is_still(part, path):
                continue  # the holder that was waited for renamed or deleted this very file
            try:
                part.truncate(0)
                yield part
            finally:
                if _is_still(part, path):
                    path.unlink()
            return


def _is_still(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _copy(storage: Storage, shard: ShardInfo, part: BinaryIO) -> str:
    """Download a shard into a file; returns its checksum."""
    digest = hashlib.sha256()
    try:
        with storage.open(shard.file) as source:
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
                part.write(chunk)
    except FileNotFoundError as error:
        raise _damaged(storage, shard, "no such file") from error
    part.flush()
    os.fsync(part.fileno())  # else a power failure could leave the finished name without the bytes
    return f"sha256:{digest.hexdigest()}"


def _damaged(storage: Storage, shard: ShardInfo, got: str) -> CorruptStoreError:
    return CorruptStoreError(
        f"the shard {shard.file} of the store {storage.url} is damaged",
        got=got,
        expected=f"{shard.size_bytes} bytes with checksum {shard.checksum}",
        hint="`clara-dist store verify` lists all damage; restore the file or compress its documents again",
    )
