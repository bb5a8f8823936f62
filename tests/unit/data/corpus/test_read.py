"""Every kind of row, good and bad, has its own outcome: a document, or a reject with line and reason."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest

from clara_dist.data.corpus import CorpusUnit, plan_units, read_unit, scan_unit
from clara_dist.data.documents import Document, Reject, content_id
from clara_dist.errors import DataError


def read_all(units: list[CorpusUnit]) -> list[Document | Reject]:
    return [item for unit in units for item in read_unit(unit)]


def outcomes(units: list[CorpusUnit]) -> list[str | tuple[int, str]]:
    return [item.doc_id if isinstance(item, Document) else (item.line, item.reason) for item in read_all(units)]


MIXED = (
    b'\xef\xbb\xbf{"doc_id": "a", "text": "one"}\r\n'
    b"\r\n"
    b'{"doc_id": "b"}\n'
    b'{"text": "no id"}\n'
    b'{"doc_id": "c", "text": ""}\n'
    b'{"doc_id": "d", "text": 5}\n'
    b'{"doc_id": "e", "text": "\xff"}\n'
    b'{"doc_id": "f", "text": "x"\n'
    b'{"doc_id": "g", "text": "\\u0000"}\n'
    b'{"doc_id": "h", "text": "\\ud800"}\n'
    b'{"doc_id": "i", "text": "t", "metadata": []}\n'
    b"[]\n"
    b'{"doc_id": "j", "text": "' + b"long " * 200_000 + b'"}\n'
    b'{"doc_id": "k", "text": "' + b"x" * 3_000_000 + b'"}\n'
    b'{"doc_id": "l", "text": "last, without a newline"}'
)
EXPECTED: list[str | tuple[int, str]] = [
    "a",
    (3, "missing text (no field text or contents)"),
    (4, "missing doc_id (no field doc_id, id or _id)"),
    (5, "text is empty"),
    (6, "text is a number, not a string"),
    (7, "invalid UTF-8 (byte 0xff at position 26)"),
    (8, "invalid JSON: Expecting ',' delimiter (column 28)"),
    (9, "text contains a NUL character"),
    (10, "text contains a lone surrogate (character 1)"),
    (11, "metadata is an array, not an object"),
    (12, "the row is valid JSON but no object"),
    "j",  # a line of 1 MB is a long document
    (14, "the line is too long (above max_line_bytes)"),
    "l",
]


@pytest.mark.parametrize("rows_per_unit", [1, 2, 5, 100])
@pytest.mark.parametrize("compressed", [False, True])
def test_every_row_has_its_outcome_however_the_file_is_cut(
    tmp_path: Path, rows_per_unit: int, compressed: bool
) -> None:
    path = tmp_path / ("corpus.jsonl.gz" if compressed else "corpus.jsonl")
    path.write_bytes(gzip.compress(MIXED, 1) if compressed else MIXED)
    units = plan_units(path, rows_per_unit=rows_per_unit, max_line_bytes=2_000_000)
    assert len(units) == -(-15 // rows_per_unit)
    assert sum(unit.n_rows for unit in units) == 15
    assert outcomes(units) == EXPECTED


def test_a_reject_tells_where_and_what(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b'{"id": "a", "text": "t"}\n{"id": 9, "text": " "}\n{"id": "b", "text": "\xff"}\n')
    assert read_all(plan_units(path)) == [
        Document("a", "", "t"),
        Reject(str(path), 2, "text is only white space", "9", '{"id": 9, "text": " "}'),
        Reject(str(path), 3, "invalid UTF-8 (byte 0xff at position 22)", None, '{"id": "b", "text": "\ufffd"}'),
    ]


def test_an_over_long_line_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    with open(path, "wb") as file:
        file.write(b'{"id": "a", "text": "t"}\n{"id": "b", "text": "')
        for _ in range(64):
            file.write(b"x" * 1024**2)
        file.write(b'"}\n{"id": "c", "text": "t"}\n')
    tracemalloc.start()
    try:
        found = outcomes(plan_units(path, max_line_bytes=1024**2))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == ["a", (2, "the line is too long (above max_line_bytes)"), "c"]
    assert peak_bytes < 16 * 1024**2  # a quarter of the line; measured 8.0 MiB: two chunks of the plan


def test_training_rows_give_every_text_as_a_document(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        {"data_type": "qa", "question": ["q"], "answers": ["a"], "docs": ["one", "two"]},
        {"question": "q", "answer": "a", "docs": ["three", "", 4, "one"]},
        {"question": "q", "answer": "a", "docs": []},
        {"question": "q", "answer": "a", "doc_ids": ["d"]},
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    units = plan_units(path)
    assert [unit.format for unit in units] == ["clara"]
    assert outcomes(units) == [
        content_id("one"),
        content_id("two"),
        content_id("three"),
        (2, "docs[1] is empty"),
        (2, "docs[2] is a number, not a string"),
        content_id("one"),
        (3, "docs is not a list of texts, or an empty one"),
        (4, "missing docs"),
    ]
    last = list(read_unit(units[0], duplicates=[3]))[5]
    assert last == Reject(
        str(path), 2, "repeated text (another is kept)", content_id("one"), "one", repeated=True, duplicate_of="another"
    )


def test_duplicates_count_documents_not_lines(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"id": "a", "text": "1"}\n{}\n\n{"id": "a", "text": "2"}\n{"id": "b", "text": "3"}\n')
    (unit,) = plan_units(path)
    assert list(read_unit(unit, duplicates=[1], winners=["c.jsonl:1"])) == [
        Document("a", "", "1"),
        Reject(str(path), 2, "missing doc_id (no field doc_id, id or _id)", None, "{}"),
        Reject(str(path), 4, "duplicate doc_id (c.jsonl:1 is kept)", "a", "2", duplicate_of="c.jsonl:1"),
        Document("b", "", "3"),
    ]


def test_a_corpus_that_changes_under_the_job_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"id": "a", "text": "1"}\n{"id": "b", "text": "2"}\n')
    first, second = plan_units(path, rows_per_unit=1)
    path.write_text('{"id": "a", "text": "1"}\n{"id": "b", "text": "3"}\n')
    assert outcomes([first]) == ["a"]
    with pytest.raises(DataError, match=r"corpus\.jsonl was changed while it was being read"):
        scan_unit(second)
    path.write_text('{"id": "a", "text": "1"}\n')
    with pytest.raises(DataError, match="was changed"):
        list(read_unit(second))
    path.unlink()
    with pytest.raises(DataError, match="there is no file"):
        list(read_unit(first))
