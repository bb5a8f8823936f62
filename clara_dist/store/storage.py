"""Where a memory store lives: a local directory, or any place that ``pyarrow.fs`` can address.

Both kinds offer the five things that the store needs: list, read, measure, publish, delete. Publishing is all or nothing for
readers: a file appears under its name with all of its bytes, or not at all.
"""

from __future__ import annotations

import errno
import os
import re
import uuid
from pathlib import Path
from typing import Protocol

import pyarrow as pa
from pyarrow import fs

from clara_dist.errors import StoreError


class Storage(Protocol):
    """A store's files, by paths relative to the store."""

    url: str

    def list_files(self, folder: str) -> list[str]:
        """Names of the published files in ``folder``, sorted; empty if the folder does not exist."""
        ...

    def size_bytes(self, file: str) -> int | None:
        """Size of ``file``; None if it does not exist."""
        ...

    def open(self, file: str) -> pa.NativeFile:
        """Open ``file`` for reading. Local files are mapped: what is read is a view, and outlives the closed file.

        Raises:
            OSError: The file is missing or unreadable.
        """
        ...

    def publish(self, file: str, data: bytes | pa.Buffer, *, exclusive: bool) -> None:
        """Make ``file`` appear, whole. With ``exclusive``, raise FileExistsError if it is already there."""
        ...

    def delete(self, file: str) -> None:
        """Remove ``file``; it is no error if it is not there. Who has it open or mapped can go on reading it."""
        ...


StoreLocation = str | os.PathLike[str] | Storage


def open_storage(location: StoreLocation) -> Storage:
    """Resolve a path or URL.

    Raises:
        StoreError: The URL's scheme or bucket is not one that pyarrow can open.
    """
    if not isinstance(location, (str, os.PathLike)):
        return location
    text = os.fspath(location)
    if not re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", text):
        return LocalStorage(text)
    try:
        filesystem, path = fs.FileSystem.from_uri(text)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StoreError(f"cannot open the store location {text}", got=error) from error
    return LocalStorage(path) if isinstance(filesystem, fs.LocalFileSystem) else RemoteStorage(filesystem, path, text)


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

    def size_bytes(self, file: str) -> int | None:
        try:
            return (self._path / file).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def open(self, file: str) -> pa.NativeFile:
        return pa.memory_map(str(self._path / file))

    def publish(self, file: str, data: bytes | pa.Buffer, *, exclusive: bool) -> None:
        target = self._path / file
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{target.name}.{uuid.uuid4().hex}.tmp"
        try:
            with open(temporary, "xb") as sink:
                sink.write(data)
                sink.flush()
                os.fsync(sink.fileno())
            if exclusive:
                _link(temporary, target)
            else:
                os.replace(temporary, target)
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


class RemoteStorage:
    """A folder of a ``pyarrow.fs`` file system, such as an S3 bucket.

    An object appears when its upload completes, so publishing is whole here too. It is NOT exclusive: pyarrow offers no
    conditional put, so ``exclusive`` is a look before the write, and of two writers that commit the same version within
    that moment the last one wins. Let one job at a time write to a remote store. What is read is copied into memory.
    """

    def __init__(self, filesystem: fs.FileSystem, path: str, url: str) -> None:
        self._filesystem = filesystem
        self._path = path.rstrip("/")
        self.url = url

    def list_files(self, folder: str) -> list[str]:
        entries = self._filesystem.get_file_info(fs.FileSelector(f"{self._path}/{folder}", allow_not_found=True))
        return sorted(e.base_name for e in entries if e.type == fs.FileType.File and not e.base_name.startswith("."))

    def size_bytes(self, file: str) -> int | None:
        entry = self._filesystem.get_file_info(f"{self._path}/{file}")
        return entry.size if entry.type == fs.FileType.File else None

    def open(self, file: str) -> pa.NativeFile:
        return self._filesystem.open_input_file(f"{self._path}/{file}")

    def publish(self, file: str, data: bytes | pa.Buffer, *, exclusive: bool) -> None:
        target = f"{self._path}/{file}"
        if exclusive and self.size_bytes(file) is not None:
            raise FileExistsError(errno.EEXIST, "exists", target)
        # Object stores have no folders; file systems behind the same interface (HDFS) need them.
        self._filesystem.create_dir(target.rsplit("/", 1)[0], recursive=True)
        with self._filesystem.open_output_stream(target) as sink:
            sink.write(data)

    def delete(self, file: str) -> None:
        if self.size_bytes(file) is not None:
            self._filesystem.delete_file(f"{self._path}/{file}")
