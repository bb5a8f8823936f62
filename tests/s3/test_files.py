"""Single files: a path and a URL are used alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clara_dist.store import files
from fault_proxy import FaultProxy

Url = Callable[[str], str]
NAMES = ["a.jsonl", "b.jsonl", "b.txt", "deep/c.jsonl", "deep/er/d.jsonl", "deepest/e.jsonl"]


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, s3_url: Url) -> str:
    folder = str(tmp_path / "corpus") if request.param == "local" else s3_url("some/corpus")
    for name in NAMES:
        files.write(files.join(folder, name), name.encode())
    return folder


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.jsonl", ["a.jsonl", "b.jsonl"]),
        ("[b-z].*", ["b.jsonl", "b.txt"]),
        ("deep/*", ["deep/c.jsonl"]),
        ("*/*.jsonl", ["deep/c.jsonl", "deepest/e.jsonl"]),
        ("**/*.jsonl", ["a.jsonl", "b.jsonl", "deep/c.jsonl", "deep/er/d.jsonl", "deepest/e.jsonl"]),
        ("deep/**", ["deep/c.jsonl", "deep/er/d.jsonl"]),
        ("deep/**/d.jsonl", ["deep/er/d.jsonl"]),
        ("a.jsonl", ["a.jsonl"]),
        ("*.parquet", []),
    ],
)
def test_glob(place: str, pattern: str, found: list[str]) -> None:
    assert files.glob(files.join(place, pattern)) == [files.join(place, name) for name in found]


def test_what_is_there(place: str) -> None:
    assert files.size_bytes(files.join(place, "deep/c.jsonl")) == len("deep/c.jsonl")
    assert files.size_bytes(files.join(place, "deep")) is None
    assert files.size_bytes(files.join(place, "absent")) is None
    assert files.is_folder(place)
    assert files.is_folder(files.join(place, "deep"))
    assert not files.is_folder(files.join(place, "dee"))
    assert not files.is_folder(files.join(place, "a.jsonl"))


def test_reading(place: str) -> None:
    path = files.join(place, "lines.jsonl")
    files.write(path, b"first\nsecond\nthird")
    with files.open_input(path) as stream:
        assert [stream.readline(), stream.tell(), stream.read(3)] == [b"first\n", 6, b"sec"]
        stream.seek(-5, 2)
        assert list(stream) == [b"third"]
    files.write(path, b"")
    with files.open_input(path) as stream:
        assert stream.read() == b""
    with pytest.raises(FileNotFoundError):
        files.open_input(files.join(place, "absent"))


def test_parquet_reads_the_columns_that_it_needs(s3_url: Url, proxy: FaultProxy) -> None:
    path = s3_url("corpus.parquet")
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"doc_id": [str(i) for i in range(1000)], "text": ["long " * 500] * 1000}), sink)
    files.write(path, sink.getvalue().to_pybytes())
    with files.open_input(path) as stream, pq.ParquetFile(stream) as table:
        assert table.read(["doc_id"]).column(0).to_pylist() == [str(i) for i in range(1000)]


def test_names(s3_url: Url) -> None:
    assert files.split("a/b.txt") == ("a", "b.txt")
    assert files.split("b.txt") == (".", "b.txt")
    assert files.split("/b?.txt") == ("/", "b?.txt")
    assert files.split("s3://bucket/x/b.txt?scheme=http&endpoint_override=h/") == (
        "s3://bucket/x?scheme=http&endpoint_override=h/",
        "b.txt",
    )
    assert files.join("s3://bucket/x/?region=eu", "y", "z") == "s3://bucket/x/y/z?region=eu"
    assert files.join("x?/", "y") == "x?/y"
