"""Folders of text files: a file is a document, its path below the folder the doc_id, its name the title."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from clara_dist.data.corpus.lines import LineRange, changed_error
from clara_dist.data.corpus.units import CorpusUnit
from clara_dist.data.documents import BadRow, Document, Reject, checked_text, excerpt_of
from clara_dist.data.json_lines import Digest
from clara_dist.data.streams import open_bytes
from clara_dist.store import files

_CHUNK_BYTES = 1024**2


def plan_texts(folder: str, names: Sequence[str], rows_per_unit: int, bytes_per_unit: int) -> Iterator[LineRange]:
    """Cut a list of files into ranges as `plan_lines` cuts lines; reads them one after the other, with flat memory.

    Raises:
        DataError: A file cannot be read.
    """
    start = n_bytes = 0
    digest = hashlib.blake2b(digest_size=16)
    for stop, name in enumerate(names, 1):
        n_bytes += _read(files.join(folder, name), 0, digest)[1]
        if stop - start == rows_per_unit or n_bytes >= bytes_per_unit or stop == len(names):
            yield LineRange(start, stop, start + 1, stop - start, digest.hexdigest())
            start, n_bytes = stop, 0
            digest = hashlib.blake2b(digest_size=16)


def read_texts(unit: CorpusUnit) -> Iterator[tuple[int, Document | Reject]]:
    """Yield (1-based number of the file, document or reject).

    Raises:
        DataError: A file cannot be read, or (after the last) their bytes are not those that were planned.
    """
    digest = hashlib.blake2b(digest_size=16)
    for number, name in enumerate(unit.names, unit.first_line):
        path, line = unit.place(number)
        content, _ = _read(path, unit.max_line_bytes, digest)
        try:
            yield number, _document(name, content)
        except BadRow as bad:
            yield number, Reject(path, line, bad.reason, bad.doc_id, excerpt_of(content or b""))
    if digest.hexdigest() != unit.digest:
        raise changed_error(unit)


def _document(name: str, content: bytes | None) -> Document:
    doc_id = checked_text("the file's name", name)
    try:
        if content is None:
            raise BadRow("the file is too long (above max_line_bytes)")
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise BadRow(f"invalid UTF-8 (byte 0x{content[error.start]:02x} in line {line})") from None
        return Document(doc_id, PurePosixPath(name).stem, checked_text("text", text))
    except BadRow as bad:
        bad.doc_id = doc_id
        raise


def _read(path: str, max_bytes: int, digest: Digest) -> tuple[bytes | None, int]:
    """The content (None if it is longer) and its length. ``digest`` sees all of it, and its length."""
    parts: list[bytes] = []
    n_bytes = 0
    with open_bytes(path) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            n_bytes += len(chunk)
            if n_bytes <= max_bytes:
                parts.append(chunk)
    digest.update(f":{n_bytes};".encode())  # two files are not the same as one of both contents
    return b"".join(parts) if n_bytes <= max_bytes else None, n_bytes
