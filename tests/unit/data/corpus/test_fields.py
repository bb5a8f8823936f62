"""Where a row has a document's parts: the user's word, FlashRAG's convention, and names that no row has."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clara_dist.data.corpus import plan_units, read_unit
from clara_dist.data.documents import Document, FieldMap, content_id, document_from_row
from clara_dist.errors import DataError

ROW = {
    "key": 7,
    "page": {"title": "T", "body": {"text": "t"}, "day": "2020-01-02"},
    "year": 1999,
    "a.b": "dotted",
    "metadata": {"source": "wiki", "url": "old"},
    "url": "new",
}
FIELDS = FieldMap(
    doc_id="key",
    text="page.body.text",
    title="page.title",
    metadata=(("ab", "a.b"), ("day", "page.day"), ("url", "url"), ("rare", "rare")),
    columns=("year", "source", "absent"),
)
DOCUMENT = Document("7", "T", "t", {"year": 1999, "source": "wiki", "url": "new", "ab": "dotted", "day": "2020-01-02"})


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["c.jsonl", "c.parquet"])
def test_fields_are_found_by_path_in_every_format(tmp_path: Path, name: str) -> None:
    second = {**ROW, "key": 8, "rare": True}
    path = write(tmp_path / name, [{**ROW, "rare": None}, second])
    items = [item for unit in plan_units(path, fields=FIELDS) for item in read_unit(unit)]
    assert items == [DOCUMENT, Document("8", "T", "t", {**DOCUMENT.metadata, "rare": True})]


def test_dates_of_columns_become_text(tmp_path: Path) -> None:
    day = datetime.datetime(2020, 1, 2, 3, 4, 5)
    path = write(tmp_path / "c.parquet", [{"id": "a", "text": "t", "day": day}])
    (unit,) = plan_units(path, fields=FieldMap(metadata=(("day", "day"),)))
    assert list(read_unit(unit)) == [Document("a", "", "t", {"day": "2020-01-02T03:04:05"})]


@pytest.mark.parametrize("name", ["c.jsonl", "c.parquet"])
def test_documents_without_ids_are_named_by_their_texts(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, [{"text": "one", "title": "T"}, {"text": "two", "title": "U"}])
    (unit,) = plan_units(path, fields=FieldMap(doc_id="none"))
    assert unit.has_content_ids
    assert list(read_unit(unit)) == [Document(content_id("one"), "T", "one"), Document(content_id("two"), "U", "two")]


@pytest.mark.parametrize(
    ("contents", "title", "text"),
    [
        ('"Aaron"\nAaron is a prophet.\nHe', "Aaron", "Aaron is a prophet.\nHe"),
        ("Aaron\nAaron is a prophet.", "Aaron", "Aaron is a prophet."),
        ('"', "", '"'),
        ("only one line", "", "only one line"),
        ("a line\n \n", "", "a line\n \n"),
        ('"\ntext', '"', "text"),
        ("\ntext", "", "text"),
    ],
)
def test_flashrag_contents_begin_with_the_title(contents: str, title: str, text: str) -> None:
    row = {"id": "0", "contents": contents}
    assert document_from_row(row) == Document("0", title, text)
    assert document_from_row({**row, "title": "own"}) == Document("0", "own", contents)
    assert document_from_row(row, FieldMap(text="contents")) == Document("0", "", contents)
    assert document_from_row({**row, "text": "t"}) == Document("0", "", "t")


def test_flashrag_by_its_name(tmp_path: Path) -> None:
    path = write(tmp_path / "wiki.data", [{"id": "0", "contents": '"T"\nt'}])
    (unit,) = plan_units(path, format="flashrag")
    assert list(read_unit(unit)) == [Document("0", "T", "t")]


@pytest.mark.parametrize("name", ["c.jsonl", "c.parquet"])
@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        (FieldMap(doc_id="pid", text="page.body.text"), "pid"),
        (FieldMap(doc_id="key", text="page.body.txt"), "page.body.txt"),
        (FieldMap(doc_id="key", text="page.body.text", title="titel"), "titel"),
        (FieldMap(doc_id="key", text="page.body.text", metadata=(("y", "jahr"),)), "jahr"),
    ],
)
def test_a_field_that_no_row_has_is_told_at_once(tmp_path: Path, name: str, fields: FieldMap, missing: str) -> None:
    path = write(tmp_path / name, [ROW])
    with pytest.raises(DataError) as caught:
        plan_units(path, fields=fields)
    assert caught.value.what == f"the first rows of {path} have no field {missing}"
    assert caught.value.got == (
        "fields a.b, key, metadata, metadata.source, metadata.url, page, page.body, page.body.text, page.day, "
        "page.title, url, year"
    )


def test_titles_and_metadata_may_be_in_one_file_only_but_texts_must_be_in_all(tmp_path: Path) -> None:
    one = write(tmp_path / "1.jsonl", [{"id": "a", "text": "t", "name": "T"}])
    two = write(tmp_path / "2.jsonl", [{"id": "b", "text": "t"}])
    items = [item for unit in plan_units([one, two], fields=FieldMap(title="name")) for item in read_unit(unit)]
    assert items == [Document("a", "T", "t"), Document("b", "", "t")]
    with pytest.raises(DataError, match=r"the first rows of .*2\.jsonl have no field name"):
        plan_units([one, two], fields=FieldMap(text="name"))


def test_training_rows_and_fields(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", [{"question": "q", "docs": ["a"], "answer": "x"}])
    assert plan_units(path)[0].format == "clara"
    # Who names the text's field wants documents.
    (unit,) = plan_units(path, fields=FieldMap(doc_id="question", text="answer"))
    assert list(read_unit(unit)) == [Document("q", "", "x")]
    # The fields decide what a unit gives, so a job that resumes must see that they are others.
    other = plan_units(path, fields=FieldMap(doc_id="question", text="question"))[0]
    assert other.identity != unit.identity
