"""Files as streams of bytes, on disks and in object stores, plain or compressed (gzip, zstd)."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO, TypeVar, cast

import pyarrow as pa

from clara_dist.errors import DataError
from clara_dist.store import files

T = TypeVar("T")

COMPRESSED_SUFFIXES = (".gz", ".zst")
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_BUFFER_BYTES = 1 << 20


class KeptFile:
    """The file that was read last, left open where it was read to.

    A compressed file cannot be entered in the middle. A worker that keeps it open decompresses it once for all the
    pieces that it reads in ascending order, instead of once from the start for each. For one thread at a time.
    """

    def __init__(self) -> None:
        self._key: object = None
        self._file: Any = None
        self._closing = ExitStack()

    def get(self, key: object, opening: Callable[[ExitStack], T]) -> T:
        """What ``opening`` made of ``key`` the last time, else what it makes now; the file before is closed."""
        if key != self._key:
            self.close()
            self._file = opening(self._closing)
            self._key = key
        return cast(T, self._file)

    def close(self) -> None:
        """Close the file, if there is one."""
        self._key = self._file = None
        self._closing.close()


def require_file(path: str) -> None:
    """Raise a `DataError` unless there is a file ``path``."""
    if files.size_bytes(path) is None:
        if files.is_folder(path):
            raise DataError(f"{path} is not a file", hint="name a file, or a glob pattern such as 'DIR/*.jsonl'")
        raise DataError(f"there is no file {path}")


def has_suffix(path: str, suffixes: tuple[str, ...], *, compressed: bool = False) -> bool:
    """Whether a file's name ends so, in letters of any case; ``compressed``: or with .gz or .zst behind."""
    name = files.split(path)[1].lower()
    if compressed:
        for suffix in COMPRESSED_SUFFIXES:
            name = name.removesuffix(suffix)
    return name.endswith(suffixes)


@contextmanager
def open_bytes(path: str, kept: KeptFile | None = None) -> Iterator[BinaryIO]:
    """Open a file or URL for reading, decompressed if it is gzip or zstd (by its name or its first bytes).

    The stream can seek. In a compressed file that reads on, or starts again for a place that has gone by.

    Args:
        path: The file.
        kept: Where the stream is taken from and left open, at whatever place; None closes it.

    Raises:
        DataError: Here or while reading inside the ``with`` block: the file is missing, is a directory, may not be
            read, or is not whole.
    """
    own = KeptFile() if kept is None else kept
    try:
        yield own.get(path, lambda closing: _open(path, closing))
    except BaseException as error:
        own.close()
        if isinstance(error, (gzip.BadGzipFile, EOFError, zlib.error)):
            raise DataError(f"{path} is damaged, or no gzip file", got=error, hint="test it with gzip -t") from error
        if isinstance(error, _ZstdError):
            raise DataError(f"{path} is damaged, or no zstd file", got=error, hint="test it with zstd -t") from error
        if isinstance(error, OSError):
            raise DataError(f"cannot read {path}", got=error.strerror or error) from error
        raise
    finally:
        if kept is None:
            own.close()


def _open(path: str, closing: ExitStack) -> BinaryIO:
    require_file(path)
    raw = closing.enter_context(files.open_input(path))
    magic = raw.read(len(_ZSTD_MAGIC))
    raw.seek(0)
    if has_suffix(path, (".gz",)) or magic.startswith(_GZIP_MAGIC):
        return cast(BinaryIO, closing.enter_context(gzip.GzipFile(fileobj=raw)))
    if has_suffix(path, (".zst",)) or magic == _ZSTD_MAGIC:
        return cast(BinaryIO, io.BufferedReader(_ZstdFile(raw), _BUFFER_BYTES))
    return raw


class _ZstdError(Exception):
    """Arrow tells damage as an OSError, as it does a disk that fails."""


class _ZstdFile(io.RawIOBase):
    """The decompressed bytes of a zstd file. It seeks as `gzip.GzipFile` does."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._restart()

    def _restart(self) -> None:
        self._raw.seek(0)
        # Arrow closes what it reads from; the file must stay open for the next start.
        self._stream = pa.CompressedInputStream(pa.PythonFile(_Unclosed(self._raw), mode="r"), "zstd")
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            raise io.UnsupportedOperation("the end of a compressed file is not known")
        target = offset if whence == os.SEEK_SET else self._position + offset
        if target < self._position:
            self._restart()
        while self._position < target:
            if not self._read(min(target - self._position, _BUFFER_BYTES)):
                break
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _read(self, size: int) -> bytes:
        try:
            data = cast(bytes, self._stream.read(size))
        except OSError as error:
            raise _ZstdError(str(error)) from error
        self._position += len(data)
        return data


class _Unclosed:
    """A file to read from that is not closed by its reader."""

    closed = False

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw

    def read(self, size: int = -1) -> bytes:
        return self._raw.read(size)

    def close(self) -> None:
        """Leave it open."""
