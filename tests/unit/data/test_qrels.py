"""Questions and judgements in files of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clara_dist.data.qrels import read_judged
from clara_dist.errors import DataError

QUERIES = [{"_id": "1", "text": "one", "metadata": {}}, {"_id": "2", "text": "two"}, {"_id": "30", "text": "dev"}]


def write(folder: Path, qrels: str, queries: list[dict[str, object]] = QUERIES) -> tuple[str, str]:
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries), encoding="utf-8")
    (folder / "test.tsv").write_text(qrels, encoding="utf-8")
    return str(folder / "queries.jsonl"), str(folder / "test.tsv")


def test_beir(tmp_path: Path) -> None:
    """Graded, with the header, ids with spaces; a judgement of 0 is none, and a question without any is left out."""
    found = read_judged(
        *write(tmp_path, "query-id\tcorpus-id\tscore\n2\td a\t2\n2\tb\t1\n2\tc\t0\n1\tx\t1\n30\ty\t0\n")
    )
    assert [(q.question_id, q.question, q.positives, q.grades) for q in found] == [
        ("1", "one", ("x",), (1,)),
        ("2", "two", ("d a", "b"), (2, 1)),
    ]
    assert {q.answers for q in found} == {()}


def test_trec(tmp_path: Path) -> None:
    found = read_judged(*write(tmp_path, "1 0 x 1\n\n1 0 y 3\n"))
    assert [(q.positives, q.grades) for q in found] == [(("x", "y"), (1, 3))]


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        ("1\tx\n", r"test.tsv, line 1: expected query-id"),
        ("1 0 x 1\n1 0 x 2\n", r"test.tsv, line 2: 'x' is judged twice for '1'"),
        ("1 0 x high\n", "line 1"),
        ("9 0 x 1\n", "1 judged questions are not there, the first is '9'"),
        ("1 0 x 0\n", "nothing"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, qrels: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_judged(*write(tmp_path, qrels))


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        ([*QUERIES, QUERIES[0]], r"queries.jsonl, line 4: _id '1' comes twice"),
        ([{"_id": "1"}], r"queries.jsonl, line 1"),
    ],
)
def test_bad_questions_are_named(tmp_path: Path, queries: list[dict[str, object]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_judged(*write(tmp_path, "1 0 x 1\n", queries))
