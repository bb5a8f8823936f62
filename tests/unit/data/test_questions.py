from __future__ import annotations

import json
from pathlib import Path

import pytest

from clara_dist.data.questions import EvalQuestion, read_questions
from clara_dist.errors import DataError

GOOD = {"question_id": "q1", "question": "Where?", "answer": "Oslo", "positives": ["a"], "candidates": ["b", "a"]}


def _write(path: Path, *rows: object) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def test_one_answer_or_several(tmp_path):
    second = {**GOOD, "question_id": "q2", "answer": ["Oslo", "Kristiania"], "positives": ["a", "c"], "other": 1}
    assert read_questions(_write(tmp_path / "q.jsonl", GOOD, "", second)) == [
        EvalQuestion("q1", "Where?", ("Oslo",), ("a",), ("b", "a")),
        EvalQuestion("q2", "Where?", ("Oslo", "Kristiania"), ("a", "c"), ("b", "a")),
    ]


def test_candidates_may_be_left_out(tmp_path):
    row = {name: value for name, value in GOOD.items() if name != "candidates"}
    assert read_questions(_write(tmp_path / "q.jsonl", row, {**row, "question_id": "q2"}))[1].candidates == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"question_id": None}, "question_id is null"),
        ({"question_id": "q1"}, "is that of"),
        ({"question": " "}, "question is only white space"),
        ({"answer": None}, "answer must be a list that is not empty"),
        ({"answer": []}, "answer must be a list that is not empty"),
        ({"answer": ["x", ""]}, "answer[1] is empty"),
        ({"positives": "a"}, "positives must be a list"),
        ({"positives": [7]}, "positives[0] is a number, not a string"),
        ({"candidates": ["a", "b", "a"]}, "candidates has 'a' twice"),
        ({"candidates": None}, "candidates must be given in all rows or in none"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, change, reason):
    path = _write(tmp_path / "q.jsonl", GOOD, {**GOOD, "question_id": "q2", **change})
    with pytest.raises(DataError) as raised:
        read_questions(path)
    assert f"{path}, line 2: " in str(raised.value)
    assert reason in str(raised.value)


def test_the_second_place_of_an_id_is_named_among_many(tmp_path):
    rows = [{**GOOD, "question_id": f"q{i}"} for i in range(300)]
    rows[250] = {**GOOD, "question_id": "q17"}
    with pytest.raises(DataError, match=r"line 251: .*question_id 'q17' is that of .*line 18\n"):
        read_questions(_write(tmp_path / "q.jsonl", *rows))


def test_no_questions(tmp_path):
    with pytest.raises(DataError, match="has no questions"):
        read_questions(_write(tmp_path / "q.jsonl"))
    with pytest.raises(DataError, match=r"line 1: .*invalid JSON"):
        read_questions(_write(tmp_path / "q.jsonl", "{"))


def test_kilt(tmp_path: Path) -> None:
    """Several outputs: answers and pages are united; one without an answer only has pages."""
    row = {
        "id": "k1",
        "input": "Who built it?",
        "output": [
            {"answer": "Ada", "provenance": [{"wikipedia_id": "12", "title": "A"}, {"wikipedia_id": "7"}]},
            {"answer": "Ada", "provenance": [{"wikipedia_id": "12"}]},
            {"answer": "Ada Tolliver"},
            {"provenance": [{"wikipedia_id": "9"}]},
        ],
    }
    silent = {"id": "k2", "input": "Where?", "output": [{"provenance": [{"wikipedia_id": "3"}]}]}
    assert read_questions(_write(tmp_path / "kilt.jsonl", row, silent)) == [
        EvalQuestion("k1", "Who built it?", ("Ada", "Ada Tolliver"), ("12", "7", "9")),
        EvalQuestion("k2", "Where?", (), ("3",)),
    ]
    with pytest.raises(DataError, match=r"line 1: .*provenance must be a list that is not empty"):
        read_questions(_write(tmp_path / "bad.jsonl", {"id": "k", "input": "Why?", "output": [{"answer": "x"}]}))
    with pytest.raises(DataError, match="not a list of objects"):
        read_questions(_write(tmp_path / "bad.jsonl", {"id": "k", "input": "Why?", "output": "x"}))
