"""Where a memory store lives: a local directory, or an object store.

Both kinds offer the few things that the store needs: list, read, measure, publish, delete. Publishing is all or
nothing for readers: a file appears under its name with all of its bytes, or not at all.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from clara_dist.errors import StoreError

# An object store answers in 20 to 100 ms, however many ask.
_REQUESTS_AT_ONCE = 16
T = TypeVar("T")
R = TypeVar("R")


class ReadableFiles(Protocol):
    """Files to read, by paths relative to a place."""

    @property
    def url(self) -> str:
        """The place."""
        ...

    def size_bytes(self, file: str) -> int | None:
        """Size of ``file``; None if it does not exist."""
        ...

    def open(self, file: str) -> pa.NativeFile:
        """Open ``file`` for reading. Local files are mapped: what is read is a view, and outlives the closed file.

        Raises:
            OSError: The file is missing or unreadable.
            StoreError: The object store cannot be reached, or refuses.
        """
        ...


class Storage(ReadableFiles, Protocol):
    """A store's files, by paths relative to the store."""

    def list_files(self, folder: str) -> list[str]:
        """Names of the published files in ``folder``, sorted; empty if the folder does not exist."""
        ...

    def modified_at(self, folder: str) -> dict[str, float]:
        """Unix times at which the files in ``folder`` were written, those included that killed writers left behind."""
        ...

    def publish(self, file: str, data: bytes | pa.Buffer, *, exclusive: bool) -> None:
        """Make ``file`` appear, whole.

        Args:
            file: Its path.
            data: Its bytes.
            exclusive: Of all who publish this file at once, one succeeds and the others get FileExistsError. An object
                store may let two succeed that publish the very same bytes: write something unique where that matters.
        """
        ...

    def delete(self, file: str) -> None:
        """Remove ``file``; it is no error if it is not there. Who has it mapped can go on reading it."""
        ...


def is_url(path: str) -> bool:
    """Whether a path names an object store, not a file of this machine."""
    return "://" in path and not path.startswith("file://")


def local_path(path: str) -> str:
    """The path of a file of this machine, which may be named by a ``file://`` URL."""
    return unquote(urlsplit(path).path) if path.startswith("file://") else path


def at_once(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Apply a function that waits for files to many items at once; the results in order. The first error ends it."""
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        return list(pool.map(function, items))


def refuse_credentials(url: str) -> None:
    """Refuse a URL that carries credentials: jobs repeat their URLs in logs, reports and manifests.

    Raises:
        StoreError: It does; the message leaves them out.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise StoreError(
            f"the URL of {parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path} carries credentials",
            expected="none: URLs end up in logs, reports and manifests",
            hint="leave them out and set them in the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )


StoreLocation = str | os.PathLike[str] | Storage


def open_storage(location: StoreLocation) -> Storage:
    """Resolve a path or URL.

    Raises:
        StoreError: The URL is of no kind that can be opened, or carries credentials.
    """
    if not isinstance(location, (str, os.PathLike)):
        return location
    text = os.fspath(location)
    if not is_url(text):
        return LocalStorage(local_path(text))
    from clara_dist.store.remote import RemoteStorage  # only here: who stays local loads no client

    return RemoteStorage.from_url(text)


# No space, over quota, larger than the limit of a file.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class LocalStorage:
    """A directory. Reads are memory maps; publishing is durable (fsync) and exclusive (hard link) across processes."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path).expanduser().absolute()
        self.url = str(self._path)

    def list_files(self, folder: str) -> list[str]:
        try:
            # Dot files are unpublished: the temporary files of running or killed writers.
            return sorted(e.name for e in os.scandir(self._path / folder) if e.is_file() and not e.name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def modified_at(self, folder: str) -> dict[str, float]:
        times = {}
        try:
            for entry in os.scandir(self._path / folder):
                with suppress(FileNotFoundError):  # renamed or deleted since it was listed
                    if entry.is_file():
                        times[entry.name] = entry.stat().st_mtime
        except (FileNotFoundError, NotADirectoryError):
            return {}
        return times

    def size_bytes(self, file: str) -> int | None:
        try:
            return (self._path / file).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def open(self, file: str) -> pa.NativeFile:
        return pa.memory_map(str(self._path / file))

    def publish(self, file: str, data: bytes | pa.Buffer, *, exclusive: bool) -> None:
        target = self._path / file
        temporary = target.parent / f".{target.name}.{uuid.uuid4().hex}.tmp"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "xb") as sink:
                sink.write(data)
                sink.flush()
                os.fsync(sink.fileno())
            if exclusive:
                _link(temporary, target)
            else:
                os.replace(temporary, target)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise StoreError(
                f"disk full at {target.parent}, {memoryview(data).nbytes} bytes needed",
                got=error.strerror,
                hint="free some space and run the command again: what is finished stays",
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        _sync_directory(target.parent)

    def delete(self, file: str) -> None:
        (self._path / file).unlink(missing_ok=True)


def _link(temporary: Path, target: Path) -> None:
    """Give a finished file its name unless the name is taken: atomic and exclusive, which a rename is not."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        raise StoreError(
            f"the file system of {target.parent} has no hard links, so commits there could not be exclusive",
            got=error.strerror,
            hint="put the store on a POSIX file system, or address an object store by its URL (s3://, gs://)",
        ) from error


def _sync_directory(folder: Path) -> None:
    """Make a new name survive a power failure, not only the file's bytes."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
