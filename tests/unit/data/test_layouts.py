"""Published data sets, as their files are: rows, corpus, questions, and that all three name documents alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from clara_dist.data.convert import convert
from clara_dist.data.corpus import plan_units, read_unit
from clara_dist.data.documents import Document, content_id
from clara_dist.data.examples import Example, ExampleRow, iter_example_rows, read_examples
from clara_dist.data.layouts import layout_of
from clara_dist.data.questions import EvalQuestion, read_questions
from clara_dist.errors import DataError

ED, DUNE, MARS = "Ed Wood\nA film of 1994. By Tim Burton.", "Dune\nA novel.", "Mars\nA planet."
HOTPOT: dict[str, Any] = {
    "_id": "5a8b57f2",
    "question": "Who made the film?",
    "answer": "Tim Burton",
    "type": "bridge",
    "level": "easy",
    "supporting_facts": [["Ed Wood", 1], ["Mars", 0]],
    # HotpotQA's sentences carry their space.
    "context": [["Dune", ["A novel."]], ["Ed Wood", ["A film of 1994.", " By Tim Burton."]], ["Mars", ["A planet."]]],
}
TWO_WIKI = {
    **HOTPOT,
    "context": [["Dune", ["A novel."]], ["Ed Wood", ["A film of 1994.", "By Tim Burton."]], ["Mars", ["A planet."]]],
    "evidences": [["Ed Wood", "director", "Tim Burton"]],
}
HUB_HOTPOT = {
    "id": "5a8b57f2",
    "question": "Who made the film?",
    "answer": "Tim Burton",
    "supporting_facts": {"title": ["Ed Wood", "Mars"], "sent_id": [1, 0]},
    "context": {
        "title": ["Dune", "Ed Wood", "Mars"],
        "sentences": [["A novel."], ["A film of 1994.", " By Tim Burton."], ["A planet."]],
    },
}
MUSIQUE = {
    "id": "2hop__1_2",
    "paragraphs": [
        {"idx": 0, "title": "Dune", "paragraph_text": "A novel.", "is_supporting": False},
        {"idx": 1, "title": "Ed Wood", "paragraph_text": "A film of 1994. By Tim Burton.", "is_supporting": True},
        {"idx": 2, "title": "Mars", "paragraph_text": "A planet.", "is_supporting": True},
    ],
    "question": "Who made the film?",
    "question_decomposition": [],
    "answer": "Tim Burton",
    "answer_aliases": ["Burton", ""],
    "answerable": True,
}
DPR = {
    "dataset": "nq_train_psgs_w100",
    "question": "Who made the film?",
    "answers": ["Tim Burton", "Burton"],
    "positive_ctxs": [
        {"title": "Ed Wood", "text": "A film of 1994. By Tim Burton.", "score": 1000, "passage_id": "1"},
        {"title": "Mars", "text": "A planet.", "score": 4, "passage_id": "7"},
    ],
    "negative_ctxs": [{"title": "Oslo", "text": "A town.", "passage_id": "3"}],
    "hard_negative_ctxs": [{"title": "Dune", "text": "A novel.", "score": 9.5, "passage_id": "2"}],
}
LAYOUTS = {"hotpotqa": HOTPOT, "2wiki": TWO_WIKI, "hub": HUB_HOTPOT, "musique": MUSIQUE, "dpr": DPR}


def write_array(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


def write_lines(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("contexts", [{"hard_negative_ctxs": None}, {"hard_negative_ctxs": []}])
def test_a_dpr_row_may_have_no_wrong_passages(tmp_path: Path, contexts: dict[str, Any]) -> None:
    (joint,) = read_examples(write_array(tmp_path / "train.json", DPR | contexts), "joint")
    assert set(joint.candidate_ids) == {content_id(ED), content_id(MARS)}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_published_row_is_examples_corpus_and_question_under_the_same_names(tmp_path: Path, name: str) -> None:
    source = write_array(tmp_path / "train.json", LAYOUTS[name])
    (joint,) = read_examples(source, "joint")
    assert (joint.question, joint.answer) == ("Who made the film?", "Tim Burton")
    assert {joint.candidate_ids[i] for i in joint.positives} == {content_id(ED), content_id(MARS)}
    assert set(joint.candidate_ids) == {content_id(text) for text in (ED, DUNE, MARS)}

    # The corpus is the converted file, and it reads the same as training data and as questions.
    converted = str(tmp_path / "rows.jsonl")
    assert convert(source, converted) == (1, 0)
    documents = [item for unit in plan_units(converted) for item in read_unit(unit)]
    assert {d.doc_id: d.text for d in documents if isinstance(d, Document)} == {
        content_id(t): t for t in (ED, DUNE, MARS)
    }
    assert read_examples(converted, "joint") == [joint]
    (instruct,) = read_examples(converted, "instruct")
    assert {content_id(text) for text in instruct.documents} == set(joint.candidate_ids)
    assert (instruct.question, instruct.answer, instruct.task) == ("Who made the film?", "Tim Burton", "answer")
    (question,) = read_questions(source)
    assert (question.answers[0], set(question.positives)) == ("Tim Burton", {content_id(ED), content_id(MARS)})
    assert question.answers == ("Tim Burton", "Burton") if name in ("musique", "dpr") else ("Tim Burton",)
    assert question.candidates == joint.candidate_ids
    assert question.question_id == {"musique": "2hop__1_2", "dpr": "train.json, item 1"}.get(name, "5a8b57f2")


def test_musique_lines_are_a_corpus_as_they_are(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "musique.jsonl", MUSIQUE, {**MUSIQUE, "id": "3", "answerable": False})
    documents = [item for unit in plan_units(path) for item in read_unit(unit)]
    assert [d.text for d in documents if isinstance(d, Document)] == [DUNE, ED, MARS] * 2


def test_the_right_passages_of_dpr_have_no_place_of_their_own(tmp_path: Path) -> None:
    (example,) = read_examples(write_array(tmp_path / "nq.json", DPR), "joint")
    assert list(example.candidate_ids) == sorted(example.candidate_ids)


def test_unanswerable_questions_are_left_out_but_told(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "full.jsonl", MUSIQUE, {**MUSIQUE, "answerable": False})
    rows = list(iter_example_rows(path, "joint"))
    assert [(place, row is None) for place, row in rows] == [(f"{path}, line 1", False), (f"{path}, line 2", True)]
    assert convert(path, str(tmp_path / "out.jsonl")) == (2, 1)
    assert [row is None for _, row in iter_example_rows(str(tmp_path / "out.jsonl"), "instruct")] == [False, True]


def test_nq_open_and_flashrag_rows_need_no_documents(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "nq.jsonl",
        {"question": "who?", "answer": ["one", "two"]},
        {"id": "dev_1", "question": "who?", "golden_answers": ["three"]},
    )
    assert read_examples(path, "joint") == [Example("who?", "one"), Example("who?", "three")]
    with pytest.raises(DataError, match=r"line 1: it is not known which documents hold the answer"):
        read_questions(path)


def test_rows_of_the_published_evaluation(tmp_path: Path) -> None:
    row = {"question": "q", "docs": ["x", "y", "x"], "pos_index": [2], "golden_answers": ["a", "b"]}
    path = write_lines(tmp_path / "eval.jsonl", row)
    x, y = content_id("x"), content_id("y")
    assert read_questions(path) == [EvalQuestion("eval.jsonl, line 1", "q", ("a", "b"), (x,), (x, y))]


def test_instruct_learns_the_teachers_answer_and_joint_the_gold_one(tmp_path: Path) -> None:
    row = {"question": "q", "docs": ["x"], "gold_answer": "gold", "answer": "of the teacher"}
    path = write_lines(tmp_path / "rows.jsonl", row)
    assert read_examples(path, "instruct") == [Example("q", "of the teacher", ("x",))]
    assert read_examples(path, "joint") == [Example("q", "gold", (), (content_id("x"),))]


@pytest.mark.parametrize(
    ("limit", "kept"),
    [(1, "d"), (2, "ad"), (3, "ade"), (4, "abde"), (5, "abcde"), (None, "abcde")],
)
def test_right_and_wrong_documents_are_kept_by_turns(tmp_path: Path, limit: int | None, kept: str) -> None:
    path = write_lines(
        tmp_path / "r.jsonl", {"question": "q", "answer": "a", "docs": list("abcde"), "pos_index": [3, 4]}
    )
    ((_, joint),) = iter_example_rows(path, "joint", max_documents=limit)
    ((_, text),) = iter_example_rows(path, "instruct", max_documents=limit)
    assert isinstance(joint, ExampleRow)
    assert isinstance(text, ExampleRow)
    assert joint.candidate_ids == tuple(map(content_id, kept))
    assert "".join(kept[i] for i in joint.positives) == "".join(c for c in kept if c in "de")
    assert "".join(text.documents) == kept


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**HOTPOT, "context": [["Dune"]]}, "context or supporting_facts is not as HotpotQA has it"),
        ({**HOTPOT, "answer": ""}, "missing answer"),
        ({**HOTPOT, "question": " "}, "question is only white space"),
        ({**HOTPOT, "context": [["", [" "]]]}, "a paragraph is empty"),
        ({**MUSIQUE, "paragraphs": [7]}, "paragraphs is not a list of objects"),
        ({**DPR, "positive_ctxs": [{"title": "x"}]}, "a paragraph's text is null, not a string"),
    ],
)
def test_a_bad_published_row_is_named(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    path = write_array(tmp_path / "set.json", HOTPOT, row)
    with pytest.raises(DataError) as caught:
        read_examples(path, "joint")
    assert caught.value.what.startswith(f"{path}, item 2: {reason}")


def test_a_named_layout_is_not_guessed(tmp_path: Path) -> None:
    assert layout_of({"question": "q", "context": "c", "answer": "a"}) == "clara"
    path = write_array(tmp_path / "set.json", {"question": "q", "answer": "a"})
    with pytest.raises(DataError, match="item 1: missing paragraphs"):
        list(iter_example_rows(path, "joint", layout="musique"))


def test_parquet_and_saved_data_sets_are_read_like_files(tmp_path: Path) -> None:
    expected = read_examples(write_array(tmp_path / "a.json", HUB_HOTPOT), "joint")
    pq.write_table(pa.Table.from_pylist([HUB_HOTPOT]), tmp_path / "a.parquet")
    assert read_examples(tmp_path / "a.parquet", "joint") == expected
    Dataset.from_list([HUB_HOTPOT]).save_to_disk(str(tmp_path / "saved"))
    assert read_examples(tmp_path / "saved", "joint") == expected
    pq.write_table(pa.Table.from_pylist([HUB_HOTPOT, {**HUB_HOTPOT, "answer": None}]), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet, row 2: missing answer"):
        read_examples(tmp_path / "b.parquet", "joint")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"question": "q", "answer": "a"}, 7]', "item 2: the item is valid JSON but no object"),
        ('[{"question": "q", "answer": "a"}, {"quest', "behind item 1: invalid JSON"),
        ("[]", "is empty: it has no examples"),
    ],
)
def test_damaged_arrays(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "set.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_examples(tmp_path / "set.json", "joint")
