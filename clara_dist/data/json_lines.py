"""Lines of JSON in bounded memory, with an exact account of what is wrong with a bad one."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO, NoReturn, Protocol

from clara_dist.data.documents import BadRow
from clara_dist.data.streams import open_bytes
from clara_dist.errors import DataError

DEFAULT_MAX_LINE_BYTES = 16 * 1024**2
_BOM = b"\xef\xbb\xbf"
_SKIP_BYTES = 1024**2


def _refuse_constant(name: str) -> NoReturn:
    raise BadRow(f"invalid JSON: {name} is not a JSON value")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


class Digest(Protocol):
    """What `hashlib` returns, as far as it is used here."""

    def update(self, data: bytes, /) -> None: ...


def skip_bom(stream: BinaryIO) -> int:
    """Step over a UTF-8 byte order mark at the start of a stream; returns its length, 3 or 0."""
    if stream.read(len(_BOM)) == _BOM:
        return len(_BOM)
    stream.seek(0)
    return 0


def iter_lines(
    stream: BinaryIO,
    *,
    first_line: int = 1,
    n_bytes: int = sys.maxsize,
    max_line_bytes: int = DEFAULT_MAX_LINE_BYTES,
    digest: Digest | None = None,
) -> Iterator[tuple[int, bytes | None]]:
    """Yield (line number, line), from where the stream stands, over at most ``n_bytes`` bytes.

    A line over ``max_line_bytes``, its newline not counted, comes as None, and is read past in pieces: it never stands
    in memory whole. Blank lines count but do not come. ``digest`` sees every byte.
    """
    number, remaining = first_line, n_bytes
    while remaining > 0:
        # One byte beyond the limit tells a line of exactly the limit from one that goes on.
        line = stream.readline(min(remaining, max_line_bytes + 1))
        if not line:
            return
        remaining -= len(line)
        if digest is not None:
            digest.update(line)
        if len(line) > max_line_bytes and not line.endswith(b"\n"):
            remaining -= _skip_line(stream, remaining, digest)
            yield number, None
        elif line.strip():
            yield number, line
        number += 1


def _skip_line(stream: BinaryIO, limit: int, digest: Digest | None) -> int:
    """Read to the end of the line, at most ``limit`` bytes; returns how many there were."""
    skipped = 0
    while skipped < limit:
        piece = stream.readline(min(limit - skipped, _SKIP_BYTES))
        skipped += len(piece)
        if digest is not None:
            digest.update(piece)
        if not piece or piece.endswith(b"\n"):
            break
    return skipped


def parse_object(line: bytes | None) -> dict[str, Any]:
    """Parse one line as a JSON object; None stands for an over-long line.

    Raises:
        BadRow: Over-long, not UTF-8, not JSON (NaN and Infinity are not), or JSON but no object.
    """
    if line is None:
        raise BadRow("the line is too long (above max_line_bytes)")
    try:
        value = parse_json(line.decode("utf-8").rstrip("\r\n"))
    except UnicodeDecodeError as error:
        raise BadRow(f"invalid UTF-8 (byte 0x{line[error.start]:02x} at position {error.start + 1})") from None
    if not isinstance(value, dict):
        raise BadRow("the row is valid JSON but no object")
    return value


def parse_json(text: str) -> Any:
    """Parse JSON text.

    Raises:
        BadRow: With the reason and the column.
    """
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise BadRow(f"invalid JSON: {error.msg.removesuffix(' at')} (column {error.colno})") from None
    except RecursionError:
        raise BadRow("invalid JSON: nested too deeply") from None
    except ValueError as error:  # an integer of more digits than Python converts
        raise BadRow(f"invalid JSON: {error}") from None


def iter_objects(path: str, *, max_line_bytes: int = DEFAULT_MAX_LINE_BYTES) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, row) of a file in which every row must be good, such as training examples.

    Raises:
        DataError: The file cannot be read, or a row is no JSON object; names file, line and reason.
    """
    with open_bytes(path) as stream:
        skip_bom(stream)
        for number, line in iter_lines(stream, max_line_bytes=max_line_bytes):
            try:
                row = parse_object(line)
            except BadRow as bad:
                raise row_error(f"{path}, line {number}", bad) from None
            yield number, row


def row_error(place: str, bad: BadRow) -> DataError:
    """The error for a bad row of data in which every row must be good."""
    return DataError(f"{place}: {bad.reason}", hint="correct or remove the row; none is skipped silently")
