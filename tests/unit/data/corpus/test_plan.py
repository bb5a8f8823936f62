from __future__ import annotations

import gzip
import json
import pickle
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clara_dist.data.corpus import corpus_fingerprint, lines, plan_units, read_unit
from clara_dist.data.documents import Document
from clara_dist.errors import DataError

ROW = '{"id": "%s", "text": "t"}\n'


def ids(units: list[Any]) -> list[str]:
    return [item.doc_id for unit in units for item in read_unit(unit) if isinstance(item, Document)]


@pytest.mark.parametrize("seed", range(20))
def test_units_tile_the_file_whatever_the_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = random.Random(seed)
    content = b"\xef\xbb\xbf" * rng.randint(0, 1) + b'{"id": 0}\n'
    content += b"".join(
        rng.choice([b"\n", b" \r\n", b"x" * rng.randint(1, 30) + b"\n"]) for _ in range(rng.randint(0, 60))
    )
    content += b"end" * rng.randint(0, 1)
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(content)
    monkeypatch.setattr(lines, "_CHUNK_BYTES", rng.randint(1, 50))
    rows_per_unit, bytes_per_unit = rng.randint(1, 9), rng.choice([1, 20, 60, 10**6])
    units = plan_units(path, rows_per_unit=rows_per_unit, bytes_per_unit=bytes_per_unit)

    pieces = [content[unit.start : unit.stop] for unit in units]
    assert b"".join(pieces) == content.removeprefix(b"\xef\xbb\xbf")
    all_lines = content.removeprefix(b"\xef\xbb\xbf").splitlines(keepends=True)
    assert [unit.n_rows for unit in units] == [len(piece.splitlines()) for piece in pieces]
    starts, n_rows, n_bytes = [0], 0, 0
    for number, line in enumerate(all_lines, 1):
        n_rows, n_bytes = n_rows + 1, n_bytes + len(line)
        if n_rows == rows_per_unit or n_bytes >= bytes_per_unit:
            starts, n_rows, n_bytes = [*starts, number], 0, 0
    assert [unit.first_line - 1 for unit in units] == [start for start in starts if start < len(all_lines)]
    assert [unit.index for unit in units] == list(range(len(units)))


def test_a_plan_is_the_same_wherever_the_corpus_lies_and_another_for_another_content(tmp_path: Path) -> None:
    def planned(folder: str, content: str, **options: Any) -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        path = tmp_path / folder / "corpus.jsonl"
        path.write_text(content)
        return corpus_fingerprint(plan_units(path, **options))

    content = ROW % "a" + ROW % "b" + ROW % "c"
    first = planned("here", content, rows_per_unit=2)
    assert planned("there", content, rows_per_unit=2) == first
    others = {
        planned("there", content, rows_per_unit=1),
        planned("there", content.replace("c", "d"), rows_per_unit=2),
        planned("there", content + ROW % "d", rows_per_unit=2),
        planned("there", content, rows_per_unit=2, format="clara"),
        planned("there", content, rows_per_unit=2, max_line_bytes=100),
    }
    assert len(others) == 5
    assert first not in others


def test_files_keep_their_order_and_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.jsonl").write_text(ROW % name)
    (tmp_path / "z.jsonl.gz").write_bytes(gzip.compress((ROW % "z").encode()))
    pattern = str(tmp_path / "*.jsonl*")
    assert ids(plan_units(pattern)) == ["a", "b", "c", "z"]
    assert ids(plan_units([tmp_path / "c.jsonl", pattern, tmp_path / "a.jsonl"])) == ["c", "a", "b", "z"]


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
@pytest.mark.parametrize("wanted", ["auto", "beir"])
def test_a_beir_directory_is_its_corpus_file(tmp_path: Path, name: str, wanted: Any) -> None:
    content = b'{"_id": "1", "title": "T", "text": "t", "metadata": {}}\n'
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "what?"}\n')
    (unit,) = plan_units(tmp_path, format=wanted)
    assert list(read_unit(unit)) == [Document("1", "T", "t", {})]


def test_the_first_good_row_tells_the_format_and_the_user_can_overrule_it(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('\nbroken\n{"question": "q", "docs": ["a", "b"]}\n')
    assert [unit.format for unit in plan_units(path)] == ["clara"]
    assert [unit.format for unit in plan_units(path, format="jsonl")] == ["jsonl"]
    # A document may well have a field named docs.
    path.write_text('{"id": "a", "text": "t", "docs": ["a", "b"]}\n')
    assert [unit.format for unit in plan_units(path)] == ["jsonl"]
    (tmp_path / "corpus.txt").write_text(ROW % "a")
    assert [unit.format for unit in plan_units(tmp_path / "corpus.txt", format="jsonl")] == ["jsonl"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("corpus.jsonl", b"", r"corpus\.jsonl is empty: it has no rows"),
        ("corpus.jsonl", b"\xef\xbb\xbf", r"corpus\.jsonl is empty: it has no rows"),
        ("corpus.jsonl", b"\n \r\n\n", r"corpus\.jsonl is empty: it has no rows"),
        ("corpus.jsonl.gz", gzip.compress(b""), r"corpus\.jsonl\.gz is empty: it has no rows"),
        ("corpus.jsonl.gz", b'{"id": "a", "text": "t"}\n', r"corpus\.jsonl\.gz is damaged, or no gzip file"),
        ("corpus.jsonl.gz", gzip.compress(b"\n" * 99)[:-9], r"corpus\.jsonl\.gz is damaged, or no gzip file"),
        ("corpus.json", b'[\n  {"id": "a", "text": "t"},\n  {"id": "b"}]', r"corpus\.json is a JSON array"),
        ("corpus.csv", b"id,text\n1,t\n", r"cannot tell the format of .*corpus\.csv by its name"),
        ("corpus.parquet", b'{"id": "a", "text": "t"}\n', r"corpus\.parquet is damaged, or no Parquet file"),
    ],
)
def test_a_file_that_cannot_be_a_corpus_is_a_data_error(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        plan_units(tmp_path / name)


def test_an_empty_file_is_an_error_whatever_format_was_named(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text("\n")
    for wanted in ("jsonl", "clara", "beir"):
        with pytest.raises(DataError, match="is empty"):
            plan_units(tmp_path / "corpus.jsonl", format=wanted)  # type: ignore[arg-type]


def test_what_is_not_there_is_a_data_error(tmp_path: Path) -> None:
    for corpus, message in [
        (tmp_path / "absent.jsonl", "there is no file"),
        (str(tmp_path / "*.jsonl"), "no file matches"),
        (tmp_path, "is a directory without a file of any known format"),
        ([], "no corpus was named"),
    ]:
        with pytest.raises(DataError, match=message):
            plan_units(corpus)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="must be positive"):
        plan_units(tmp_path / "absent.jsonl", rows_per_unit=0)


def test_a_unit_crosses_processes(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text(ROW % "a")
    (unit,) = plan_units(tmp_path / "corpus.jsonl")
    copy = pickle.loads(pickle.dumps(unit))
    assert copy == unit
    assert copy.identity == unit.identity
    assert ids([copy]) == ["a"]


@pytest.mark.parametrize("format", ["jsonl", "parquet", "arrow", "text"])
def test_long_documents_make_units_of_fewer_rows(tmp_path: Path, format: str) -> None:
    sizes = [10, 10, 300, 10, 10, 10, 999, 10, 120, 120]
    columns = {"id": [f"d{i}" for i in range(10)], "text": ["x" * size for size in sizes]}
    if format == "jsonl":
        rows = (json.dumps({"id": f"d{i}", "text": "x" * (size - 3)}) for i, size in enumerate(sizes))
        (tmp_path / "c.jsonl").write_text("".join(row.replace(" ", "") + "\n" for row in rows))
    elif format == "parquet":
        pq.write_table(pa.table(columns), tmp_path / "c.parquet", row_group_size=4)
    elif format == "arrow":
        with pa.ipc.new_stream(tmp_path / "c.arrow", pa.table(columns).schema) as writer:
            writer.write_table(pa.table(columns), max_chunksize=3)
    else:
        for i, size in enumerate(sizes):
            (tmp_path / f"d{i}.txt").write_text("x" * size)
    units = plan_units(tmp_path, rows_per_unit=4, bytes_per_unit=250)
    assert [unit.n_rows for unit in units] == [3, 4, 3]
    read = [item.doc_id.removesuffix(".txt") for unit in units for item in read_unit(unit)]
    assert read == columns["id"]
