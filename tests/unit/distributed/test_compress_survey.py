"""The survey on the serial mapper: repeated ids over files and formats, and the list of rejects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clara_dist.config.compress import CompressConfig
from clara_dist.data.corpus import plan_units, read_unit
from clara_dist.data.documents import Document, FieldMap
from clara_dist.distributed.actor_pool import map_serially
from clara_dist.distributed.compress_survey import Survey, survey_corpus
from clara_dist.errors import DataError


def backwards(worker: Any, arguments: Any, tasks: Any) -> Iterator[tuple[int, Any]]:
    """A mapper whose last task is done first."""
    for index, result in map_serially(worker, arguments, tasks[::-1]):
        yield len(tasks) - 1 - index, result


def survey(tmp_path: Path, mapper: Any = map_serially, **settings: Any) -> Survey:
    config = CompressConfig(model="m", store=str(tmp_path / "store"), **{"max_rejects": 99, **settings})
    units = plan_units(
        config.corpus,
        format=config.format,
        fields=FieldMap.from_config(config, config.metadata_columns),
        rows_per_unit=2,
    )
    passages = config.long_documents == "split"
    return survey_corpus(config, units, mapper, columns=config.metadata_columns, passages=passages)


def kept(found: Survey) -> list[str]:
    items = (item for work in found.work for item in read_unit(work.unit, work.duplicates))
    return [item.text for item in items if isinstance(item, Document)]


def listed(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "store.rejects.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[str, ...]:
    lines = tmp_path / "1.jsonl"
    lines.write_text('{"id": "a", "text": "1"}\nbroken\n{"id": "b", "text": "2"}\n\n{"id": "a", "text": "3"}\n')
    pq.write_table(pa.table({"id": ["c", "b"], "text": ["4", "5"]}), tmp_path / "2.parquet")
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "c").write_text("6")
    (texts / "d").write_bytes(b"\xff")
    return str(lines), str(tmp_path / "2.parquet"), str(tmp_path / "3.jsonl.gz")


@pytest.mark.parametrize("mapper", [map_serially, backwards])
@pytest.mark.parametrize(
    ("on_duplicate", "texts", "places"),
    [
        ("first", ["1", "2", "4"], [("1.jsonl", 2, None), ("1.jsonl", 5, "1.jsonl:1"), ("2.parquet", 2, "1.jsonl:3")]),
        ("last", ["3", "4", "5"], [("1.jsonl", 1, "1.jsonl:5"), ("1.jsonl", 2, None), ("1.jsonl", 3, "2.parquet:2")]),
    ],
)
def test_one_of_equal_ids_wins_over_formats(
    tmp_path: Path, corpus: tuple[str, ...], mapper: Any, on_duplicate: str, texts: list[str], places: list[Any]
) -> None:
    found = survey(tmp_path, mapper, corpus=corpus[:2], on_duplicate=on_duplicate)
    assert kept(found) == texts
    assert (found.n_documents, found.n_rejected, found.n_repeated) == (3, 3, 0)
    assert found.n_documents == len(kept(found))
    rejects = [(Path(row["path"]).name, row["line"], row["duplicate_of"]) for row in listed(tmp_path)]
    assert rejects == [(name, line, place and str(tmp_path / place)) for name, line, place in places]
    for row in listed(tmp_path):
        if row["duplicate_of"]:
            assert row["reason"] == f"duplicate doc_id ({row['duplicate_of']} is kept)"


def test_an_id_that_stands_twice_can_be_an_error_with_its_places(tmp_path: Path, corpus: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="doc_ids stand twice in the corpus; nothing was done") as caught:
        survey(tmp_path, corpus=corpus[:2], on_duplicate="error")
    one, two = corpus[:2]
    assert str(caught.value.got).splitlines() == [
        f"2 rows, listed in {tmp_path / 'store.rejects.jsonl'}",
        f"    'a' in {one}:5 and {one}:1",
        f"    'b' in {two}:2 and {one}:3",
    ]
    assert len(listed(tmp_path)) == 3
    assert survey(tmp_path, corpus=corpus[1:2], on_duplicate="error").n_documents == 2


def test_losers_count_against_max_rejects_and_repeated_texts_do_not(tmp_path: Path, corpus: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="3 of 6 rows"):
        survey(tmp_path, corpus=corpus[:2], max_rejects=2)
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\n{"text": "one"}\n')
    for on_duplicate in ("error", "first", "last"):
        found = survey(tmp_path, corpus=(str(path),), id_field="none", on_duplicate=on_duplicate, max_rejects=0)
        assert (found.n_documents, found.n_rejected, found.n_repeated) == (2, 0, 1)
        assert kept(found) == (["two", "one"] if on_duplicate == "last" else ["one", "two"])
        (reject,) = listed(tmp_path)
        loser, winner = (1, 3) if on_duplicate == "last" else (3, 1)
        assert (reject["line"], reject["repeated"], reject["duplicate_of"]) == (loser, True, f"{path}:{winner}")


def test_texts_of_two_folders_are_told_apart_by_their_files(tmp_path: Path, corpus: tuple[str, ...]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "c").write_text("7")
    found = survey(tmp_path, corpus=(str(tmp_path / "texts/*"), str(other / "*")), format="text")
    assert kept(found) == ["6"]
    assert [(row["path"], row["line"], row["duplicate_of"]) for row in listed(tmp_path)] == [
        (str(tmp_path / "texts" / "d"), 1, None),
        (str(other / "c"), 1, f"{tmp_path / 'texts' / 'c'}:1"),
    ]


def test_a_name_that_is_not_utf8_can_be_listed(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "good.txt").write_text("t")
    with open(bytes(folder) + b"/bad\xff.txt", "w") as file:
        file.write("t")
    assert kept(survey(tmp_path, corpus=(str(folder),))) == ["t"]
    (row,) = listed(tmp_path)
    assert row["reason"] == "the file's name contains a lone surrogate (character 4)"
    assert row["path"].endswith("bad\udcff.txt")


def test_a_typed_column_may_stand_at_the_top_of_a_row(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"id": "a", "text": "1", "year": 1999}\n{"id": "b", "text": "2", "year": "x"}\n')
    found = survey(tmp_path, corpus=(str(path),), metadata_columns={"year": "int64"})
    assert found.n_documents == 1
    assert [row["reason"] for row in listed(tmp_path)] == ["metadata 'year' is no int64"]
