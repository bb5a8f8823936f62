"""Files on a disk or in an object store, for all that is no memory store: corpora, lists of rejects, models.

A URL's options (``?endpoint_override=...``) stand behind its path, so in a URL a ``?`` is never part of a pattern.
"""

from __future__ import annotations

import glob as local_glob
import io
import mmap
import os
import shutil
import uuid
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import pyarrow as pa

from clara_dist.store.storage import at_once, is_url, open_storage

if TYPE_CHECKING:
    from clara_dist.store.remote import RemoteStorage

__all__ = [
    "download",
    "glob",
    "is_folder",
    "is_url",
    "join",
    "open_input",
    "size_bytes",
    "split",
    "upload",
    "write",
    "write_from",
]

# One request per buffer: at 30 ms a request, 8 MiB keeps a 1 GbE line full when a file is read from end to end.
_BUFFER_BYTES = 8 << 20


def split(path: str) -> tuple[str, str]:
    """Folder and name of a file; the folder of a URL keeps the URL's options."""
    head, query = _without_options(path)
    folder, _, name = head.rpartition("/")
    return (folder or ("/" if head.startswith("/") else ".")) + query, name


def join(folder: str, *names: str) -> str:
    """The path of a file in a folder; a URL's options stay at its end."""
    head, query = _without_options(folder)
    return "/".join([head.rstrip("/"), *names]) + query


def size_bytes(path: str) -> int | None:
    """Size of a file; None if there is no such file.

    Raises:
        StoreError: The object store cannot be reached or refuses; so for all functions here.
    """
    folder, name = split(path)
    if not is_url(path):
        return os.path.getsize(path) if os.path.isfile(path) else None
    return open_storage(folder).size_bytes(name)


def is_folder(path: str) -> bool:
    """Whether there are files below ``path``; for a local path, whether it is a directory."""
    return not _remote(path).is_empty() if is_url(path) else os.path.isdir(path)


def open_input(path: str) -> BinaryIO:
    """Open a file for buffered reading, seekable.

    Raises:
        OSError: It is missing or may not be read.
    """
    if not is_url(path):
        return open(path, "rb")
    folder, name = split(path)
    return cast(BinaryIO, io.BufferedReader(_remote(folder).open_raw(name), _BUFFER_BYTES))


def write(path: str, data: bytes | pa.Buffer) -> None:
    """Make a file appear, whole; one that is there is replaced."""
    folder, name = split(path)
    open_storage(folder).publish(name, data, exclusive=False)


def write_from(path: str, source: BinaryIO) -> None:
    """As `write`, of all that a local file holds; it is mapped, so that it never stands in memory as a whole."""
    source.flush()
    if source.seek(0, os.SEEK_END):
        write(path, pa.py_buffer(mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)))
    else:  # nothing cannot be mapped
        write(path, b"")


def download(url: str, target: Path) -> None:
    """Copy all files below a URL into a new directory, which appears when it is complete.

    Raises:
        FileNotFoundError: There are none.
    """
    remote = _remote(url)
    names = sorted(remote.list_tree())
    if not names:
        raise FileNotFoundError(f"there is nothing below {url}")
    staging = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")

    def fetch(name: str) -> None:
        path = staging / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_input(join(url, name)) as source, open(path, "wb") as sink:
            shutil.copyfileobj(source, sink, _BUFFER_BYTES)

    try:
        at_once(fetch, names)
        os.replace(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def upload(folder: Path, url: str, *, last: str) -> None:
    """Copy all files of a directory below a URL; the one that readers look for comes when the others are there."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    at_once(lambda name: write(join(url, name), (folder / name).read_bytes()), [n for n in names if n != last])
    write(join(url, last), (folder / last).read_bytes())


def glob(pattern: str) -> list[str]:
    """Files that match, sorted: ``*`` within a name, ``**`` over folders, ``[...]``; in local paths ``?`` too."""
    if not is_url(pattern):
        return sorted(path for path in local_glob.glob(pattern, recursive=True) if os.path.isfile(path))
    head, query = _without_options(pattern)
    scheme, _, path = head.partition("://")
    parts = path.split("/")
    fixed = next((i for i, part in enumerate(parts) if local_glob.has_magic(part)), len(parts) - 1)
    folder = f"{scheme}://{'/'.join(parts[:fixed])}{query}"
    return [
        join(folder, name) for name in sorted(_remote(folder).list_tree()) if _matches(name.split("/"), parts[fixed:])
    ]


def _remote(folder: str) -> RemoteStorage:
    from clara_dist.store.remote import RemoteStorage  # only here: who stays local loads no client

    return RemoteStorage.from_url(folder)


def _matches(names: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not names
    if pattern[0] == "**":
        return any(_matches(names[i:], pattern[1:] or ["*"]) for i in range(len(names)))
    return bool(names) and fnmatchcase(names[0], pattern[0]) and _matches(names[1:], pattern[1:])


def _without_options(path: str) -> tuple[str, str]:
    if not is_url(path):
        return path, ""
    head, mark, options = path.partition("?")
    return head, mark + options
