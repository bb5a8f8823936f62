from __future__ import annotations

import datetime
import itertools
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clara_dist.data.corpus import corpus_fingerprint, plan_units, read_unit
from clara_dist.data.documents import Document, Reject
from clara_dist.errors import DataError


def write(path: Path, columns: dict[str, Any], row_group_size: int = 3) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


@pytest.mark.parametrize("rows_per_unit", [1, 2, 3, 4, 7, 100])
def test_units_tile_the_rows_across_row_groups(tmp_path: Path, rows_per_unit: int) -> None:
    path = write(tmp_path / "c.parquet", {"id": list(range(10)), "text": [f"t{i}" for i in range(10)]})
    units = plan_units(path, rows_per_unit=rows_per_unit)
    assert [unit.n_rows for unit in units[:-1]] == [rows_per_unit] * (len(units) - 1)
    read = [[item.doc_id for item in read_unit(unit)] for unit in units]
    assert [len(part) for part in read] == [unit.n_rows for unit in units]
    assert list(itertools.chain.from_iterable(read)) == [str(i) for i in range(10)]


def test_columns_are_named_as_the_fields_of_jsonl(tmp_path: Path) -> None:
    path = write(
        tmp_path / "c.parquet",
        {
            "_id": pa.array(["a", "b"]).dictionary_encode(),
            "title": ["A", None],
            "contents": pa.array(["one", "two"], pa.large_string()),
            "metadata": [{"year": 2020, "tags": ["x"]}, None],
            "embedding": [[0.0], [1.0]],
        },
    )
    (unit,) = plan_units(path)
    assert list(read_unit(unit)) == [
        Document("a", "A", "one", {"year": 2020, "tags": ["x"]}),
        Document("b", "", "two", {}),
    ]


def test_metadata_may_be_json_text(tmp_path: Path) -> None:
    path = write(
        tmp_path / "c.parquet",
        {"id": ["a", "b", "c"], "text": ["t"] * 3, "metadata": ['{"k": 1}', "{", "[1]"]},
    )
    (unit,) = plan_units(path)
    good, broken, array = read_unit(unit)
    assert good == Document("a", "", "t", {"k": 1})
    assert isinstance(broken, Reject)
    assert broken.reason.startswith("metadata: invalid JSON: Expecting property name")
    assert isinstance(array, Reject)
    assert array.reason == "metadata is an array, not an object"


def test_bad_rows_are_rejected_with_their_row_number(tmp_path: Path) -> None:
    # Bytes cast without a check: what a careless writer leaves behind.
    bad_utf8 = pa.Array.from_buffers(pa.string(), 4, pa.array([b"ok", b"\xff\xfe", b"", b"x"]).buffers(), null_count=0)
    path = write(tmp_path / "c.parquet", {"id": ["a", "b", "c", None], "text": bad_utf8}, row_group_size=2)
    items = [item for unit in plan_units(path, rows_per_unit=3) for item in read_unit(unit)]
    assert items[0] == Document("a", "", "ok")
    assert [(item.line, item.reason) for item in items[1:] if isinstance(item, Reject)] == [
        (2, "invalid UTF-8 in column text"),
        (3, "text is empty"),
        (4, "missing doc_id (no field doc_id, id or _id)"),
    ]


def test_dates_become_text_and_metadata_that_json_cannot_hold_is_rejected(tmp_path: Path) -> None:
    values = [{"day": datetime.date(2020, 1, 2), "raw": None}, {"day": None, "raw": b"x"}]
    path = write(tmp_path / "c.parquet", {"id": ["b", "a"], "text": ["t", "t"], "metadata": values})
    (unit,) = plan_units(path)
    good, reject = read_unit(unit)
    assert good == Document("b", "", "t", {"day": "2020-01-02", "raw": None})
    assert isinstance(reject, Reject)
    assert reject.doc_id == "a"
    assert reject.reason == "metadata cannot be written as JSON: Object of type bytes is not JSON serializable"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a"], "body": ["t"]}, r"has no column text or contents\n  got: columns body, id"),
        ({"text": ["t"]}, "has no column doc_id, id or _id"),
        ({"id": pa.array([], pa.string()), "text": pa.array([], pa.string())}, "is empty: it has no rows"),
    ],
)
def test_a_file_that_cannot_give_documents_is_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        plan_units(write(tmp_path / "c.parquet", columns))


def test_damage_after_planning_is_a_data_error(tmp_path: Path) -> None:
    path = write(tmp_path / "c.parquet", {"id": [f"doc {i}" for i in range(100)], "text": ["t"] * 100})
    (unit,) = plan_units(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"c\.parquet is damaged, or no Parquet file"):
        list(read_unit(unit))


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    one = write(tmp_path / "one.parquet", {"id": ["a", "b"], "text": ["t", "u"]})
    two = write(tmp_path / "two.parquet", {"id": ["a", "b"], "text": ["t", "v"]})
    assert corpus_fingerprint(plan_units(one)) == corpus_fingerprint(plan_units(one))
    assert corpus_fingerprint(plan_units(one)) != corpus_fingerprint(plan_units(two))
