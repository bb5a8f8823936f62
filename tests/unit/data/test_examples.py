from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from clara_dist.data.corpus import plan_units, read_unit
from clara_dist.data.documents import Document, content_id
from clara_dist.data.examples import Example, ExamplesDigest, read_examples
from clara_dist.errors import DataError

QA = {"data_type": "qa", "question": ["q1", "q2"], "answers": ["a1", "a2"], "docs": ["first text", "second text"]}


def write(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_compression_makes_one_example_of_all_pairs_in_the_published_form(tmp_path: Path) -> None:
    assert read_examples(write(tmp_path, QA), "compression") == [
        Example(
            question="",
            answer="Question: q1\nAnswer: a1\nQuestion: q2\nAnswer: a2",
            documents=("first text", "second text"),
            task="qa_generation",
        )
    ]


@pytest.mark.parametrize("stage", ["instruct", "base"])
def test_the_other_text_stages_make_one_example_of_every_pair(tmp_path: Path, stage: Any) -> None:
    examples = read_examples(write(tmp_path, QA), stage)
    docs = ("first text", "second text")
    assert examples == [Example("q1", "a1", docs), Example("q2", "a2", docs)]
    assert examples[0].documents is examples[1].documents  # a row's texts are held once


@pytest.mark.parametrize("stage", ["compression", "instruct", "base"])
def test_answer_and_paraphrase_rows_are_the_same_in_every_text_stage(tmp_path: Path, stage: Any) -> None:
    path = write(
        tmp_path,
        {**QA, "data_type": "answer"},
        {"data_type": "paraphrase", "question": [""], "answers": ["in other words"], "docs": ["text"]},
    )
    docs = ("first text", "second text")
    assert read_examples(path, stage) == [
        Example("q1", "a1", docs),
        Example("q2", "a2", docs),
        Example("", "in other words", ("text",), task="paraphrase"),
    ]


def test_only_the_base_stage_supervises_documents(tmp_path: Path) -> None:
    path = write(tmp_path, {**QA, "supervise_documents": True})
    assert [e.supervise_documents for e in read_examples(path, "base")] == [True, True]
    assert [e.supervise_documents for e in read_examples(path, "instruct")] == [False, False]


def test_joint_rows_name_their_candidates_as_the_corpus_reader_does(tmp_path: Path) -> None:
    row = {"question": "q", "docs": ["x", "y", "z"], "gold_answer": "a", "pos_index": [2, 1]}
    path = write(tmp_path, row)
    (example,) = read_examples(path, "joint")
    corpus = [item for unit in plan_units(path) for item in read_unit(unit) if isinstance(item, Document)]
    assert example == Example("q", "a", (), tuple(document.doc_id for document in corpus), (1, 2))
    assert example.candidate_ids == tuple(content_id(text) for text in "xyz")


def test_joint_rows_by_id_in_all_their_spellings(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"question": "q", "doc_ids": ["d1", 2], "answer": "a", "pos_index": 1},
        {"question": ["q"], "doc_ids": ["d1"], "answer": ["a", "other spelling"]},
        {"question": "q", "answer": "a"},
        # d1 stands twice: one candidate, and positives move with it.
        {"question": "q", "doc_ids": ["d1", "d2", "d1", "d3"], "answer": "a", "pos_index": [2, 3, 0]},
    )
    assert read_examples(path, "joint") == [
        Example("q", "a", (), ("d1", "2"), (1,)),
        Example("q", "a", (), ("d1",), ()),
        Example("q", "a", (), (), ()),
        Example("q", "a", (), ("d1", "d2", "d3"), (0, 2)),
    ]


@pytest.mark.parametrize(
    ("stage", "change", "reason"),
    [
        ("compression", {"data_type": None}, "data_type is None, expected one of qa, answer, paraphrase"),
        ("compression", {"data_type": ["qa"]}, "data_type is ['qa'], expected one of qa, answer, paraphrase"),
        ("instruct", {"docs": None}, "missing docs"),
        ("instruct", {"docs": []}, "docs is neither a text nor a list of texts, or an empty list"),
        ("instruct", {"docs": ["ok", " "]}, "docs[1] is only white space"),
        ("instruct", {"question": ["q1"]}, "1 questions but 2 answers"),
        ("instruct", {"answers": ["a1", ""]}, "answers[1] is empty"),
        ("instruct", {"answers": ["a1", 2]}, "answers[1] is a number, not a string"),
        ("compression", {"question": ["q1", "\ud800"]}, "question[1] contains a lone surrogate (character 1)"),
        ("base", {"supervise_documents": 1}, "supervise_documents is no boolean"),
        ("joint", {"question": "q", "answer": None}, "missing answer"),
        ("joint", {"question": ["q1", "q2"], "answer": "a"}, "question has 2 entries, expected at most 1"),
        ("joint", {"question": "q", "answer": "a", "doc_ids": ["d"]}, "both docs and doc_ids"),
        (
            "joint",
            {"question": "q", "answer": "a", "pos_index": [2]},
            "pos_index 2 is no position among 2 candidates, which count from 0",
        ),
        ("joint", {"question": "q", "answer": "a", "pos_index": [-1]}, "pos_index -1 is no position among 2"),
        ("joint", {"question": "q", "answer": "a", "pos_index": [True]}, "pos_index True is no position among 2"),
        ("joint", {"question": "q", "answer": "a", "docs": None, "doc_ids": ["d", 1.0]}, "doc_ids[1] is a number"),
        ("joint", {"question": "q", "answer": "a", "docs": None, "pos_index": [0]}, "pos_index 0 is no position"),
    ],
)
def test_a_bad_row_stops_the_reading_with_file_line_and_reason(
    tmp_path: Path, stage: Any, change: dict[str, Any], reason: str
) -> None:
    good = {"question": "q", "answer": "a"} if stage == "joint" else QA
    path = write(tmp_path, good, {**QA, **change})
    with pytest.raises(DataError) as caught:
        read_examples(path, stage)
    assert caught.value.what.startswith(f"{path}, line 2: {reason}")


def test_a_file_without_examples_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is empty: it has no examples"):
        read_examples(write(tmp_path), "joint")
    with pytest.raises(DataError, match="there is no file"):
        read_examples(tmp_path / "absent.jsonl", "joint")


def fingerprint(examples: list[Example]) -> str:
    digest = ExamplesDigest()
    digest.update(examples)
    return digest.hexdigest()


def test_the_fingerprint_is_of_content_and_order(tmp_path: Path) -> None:
    one, two = Example("q1", "a1", ("d",)), Example("q2", "a2", ("d",))
    assert fingerprint([one, two]) == fingerprint([one, two])
    others = [[two, one], [one], [one, two, two], [one, Example("q2", "a2", ("d",), supervise_documents=True)]]
    assert len({fingerprint(examples) for examples in [[one, two], *others]}) == 5


def test_examples_cross_processes() -> None:
    example = Example("q", "a", (), ("d1", "d2"), (1,))
    assert pickle.loads(pickle.dumps(example)) == example
