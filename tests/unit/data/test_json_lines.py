from __future__ import annotations

import gzip
import hashlib
import io
from pathlib import Path

import pytest

from clara_dist.data.documents import BadRow
from clara_dist.data.json_lines import iter_lines, iter_objects, parse_object
from clara_dist.data.streams import open_bytes
from clara_dist.errors import DataError


def test_lines_keep_their_numbers_over_blank_and_over_long_ones() -> None:
    content = b"one\n\n  \r\ntwo\r\n" + b"x" * 9 + b"\n" + b"y" * 8 + b"\n" + b"z" * 8
    digest = hashlib.blake2b()
    lines = list(iter_lines(io.BytesIO(content), first_line=11, max_line_bytes=8, digest=digest))
    # Exactly the limit is accepted with and without a newline; one byte more is not.
    assert lines == [(11, b"one\n"), (14, b"two\r\n"), (15, None), (16, b"y" * 8 + b"\n"), (17, b"z" * 8)]
    assert digest.digest() == hashlib.blake2b(content).digest()


def test_a_range_ends_where_it_ends() -> None:
    stream = io.BytesIO(b"skip\naa\nbb\ncc\n")
    stream.seek(5)
    assert list(iter_lines(stream, n_bytes=6)) == [(1, b"aa\n"), (2, b"bb\n")]
    # The over-long line is read past only within the range.
    assert list(iter_lines(io.BytesIO(b"a" * 100), n_bytes=50, max_line_bytes=3)) == [(1, None)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (None, "the line is too long (above max_line_bytes)"),
        (b'{"a": "\xff"}', "invalid UTF-8 (byte 0xff at position 8)"),
        (b'{"a": "\xed\xa0\x80"}', "invalid UTF-8 (byte 0xed at position 8)"),
        (b"{'a': 1}", "invalid JSON: Expecting property name enclosed in double quotes (column 2)"),
        (b'{"a": 1} x', "invalid JSON: Extra data (column 10)"),
        (b'{"a": "x\0"}', "invalid JSON: Invalid control character (column 9)"),
        (b"\0\0\0", "invalid JSON: Expecting value (column 1)"),
        (b'{"a": NaN}', "invalid JSON: NaN is not a JSON value"),
        (b'{"a": -Infinity}', "invalid JSON: -Infinity is not a JSON value"),
        (b'{"a":' * 100_000, "invalid JSON: nested too deeply"),
        (b"[1]", "the row is valid JSON but no object"),
        (b"null", "the row is valid JSON but no object"),
    ],
)
def test_every_bad_line_has_its_reason(line: bytes | None, reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        parse_object(line)
    assert caught.value.reason == reason


def test_an_integer_of_5000_digits_is_a_bad_row() -> None:
    with pytest.raises(BadRow, match="invalid JSON: Exceeds the limit"):
        parse_object(b'{"a": ' + b"1" * 5000 + b"}")


def test_strict_rows_skip_a_bom_and_name_file_and_line_of_a_bad_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": 2}')
    assert list(iter_objects(str(path))) == [(1, {"a": 1}), (3, {"a": 2})]
    path.write_bytes(b'\xef\xbb\xbf\n{"a": 1}\n{"a"}\n')
    rows = iter_objects(str(path))
    assert next(rows) == (2, {"a": 1})
    with pytest.raises(DataError, match=r"rows\.jsonl, line 3: invalid JSON: Expecting ':' delimiter \(column 5\)"):
        next(rows)


def test_gzip_is_known_by_its_bytes_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(gzip.compress(b'{"a": 1}\n') + gzip.compress(b'{"a": 2}\n'))
    assert [row for _, row in iter_objects(str(path))] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("damage", ["not gzip", "cut short", "flipped", "checksum"])
def test_a_damaged_gzip_file_is_a_data_error(tmp_path: Path, damage: str) -> None:
    whole = gzip.compress(b'{"a": 1}\n' * 1000)
    content = {
        "not gzip": b'{"a": 1}\n',
        "cut short": whole[:-12],
        "flipped": whole[:20] + bytes([whole[20] ^ 255]) + whole[21:],
        "checksum": whole[:-8] + b"\0" * 8,
    }[damage]
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz is damaged, or no gzip file"):
        list(iter_objects(str(path)))


def test_a_missing_file_and_a_directory_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"), open_bytes(str(tmp_path / "absent")):
        pass
    with pytest.raises(DataError, match="is not a file"), open_bytes(str(tmp_path)):
        pass
