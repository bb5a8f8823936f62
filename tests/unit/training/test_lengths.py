"""Lengths in tokens, and what does not fit; the tiny tokenizer reads one token a byte at worst."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clara_dist.config import ClaraConfig, StageConfig
from clara_dist.errors import DataError
from clara_dist.model import ClaraTokenizer
from clara_dist.model.base import load_tokenizer
from clara_dist.training import lengths
from clara_dist.training.batches import StepPlan
from clara_dist.training.collate import CompressionCollator
from clara_dist.training.data import stage_lengths
from clara_dist.training.lengths import DataLengths, Spread

DOCS = ["A short text.", "A text that is a good deal longer than the other one, so that it must be cut somewhere."]


@pytest.fixture
def make_tokenizer(tiny_base_dir: Path) -> Any:
    def make(**fields: Any) -> ClaraTokenizer:
        config = ClaraConfig(base_model=str(tiny_base_dir), n_memory_tokens=2, doc_max_tokens=16, **fields)
        return ClaraTokenizer(load_tokenizer(str(tiny_base_dir)), config)

    return make


def rows(path: Path, answers: list[str], **fields: Any) -> str:
    made = [{"data_type": "answer", "question": ["Who?"], "answers": [a], "docs": DOCS} | fields for a in answers]
    path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return str(path)


def instruct(data: str, **fields: Any) -> StageConfig:
    return StageConfig(stage="instruct", data=data, steps=1, **fields)


def joint(data: str, **fields: Any) -> StageConfig:
    return StageConfig(stage="joint", data=data, steps=1, store="s", **fields)


def test_spreads() -> None:
    assert Spread.of(list(range(1, 102))) == Spread(101, 1, 51.0, 51.0, 96.0, 100.0, 101)
    assert Spread.of([]) is None


def test_lengths_are_those_of_the_batches_that_are_trained(tmp_path: Path, make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer()
    answers = ["1810.", "In the year 1810, or 1811."]
    stage = instruct(rows(tmp_path / "r.jsonl", answers))
    found = stage_lengths(stage, tokenizer)
    prompts = [tokenizer.prompt_with_answer("answer", 2, "Who?", answer) for answer in answers]
    wholes = [len(p.prompt_ids) + len(p.answer_ids) for p in prompts]
    encoded = tokenizer.encode_texts(DOCS)
    assert found == DataLengths(
        rows=2,
        examples=2,
        left_out=0,
        without_positives=0,
        every=1,
        question=Spread.of([tokenizer.encode_text("Who?").n_tokens] * 2),
        answer=Spread.of([len(p.answer_ids) for p in prompts]),
        prompt=Spread.of(wholes),
        document=Spread.of([e.n_tokens for e in encoded] * 2),
        documents=Spread.of([2, 2]),
        cut_answers=0,
        cut_documents=2,
    )
    assert [e.truncated for e in encoded] == [False, True]


def test_without_a_tokenizer_rows_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(
        '{"question": "q", "answer": "a", "doc_ids": ["a", "b", "c"], "pos_index": 0}\n'
        '{"question": "q", "answer": "a", "doc_ids": ["a"]}\n'
    )
    found = stage_lengths(joint(str(path)), None)
    assert (found.rows, found.examples, found.without_positives) == (2, 2, 1)
    assert found.documents == Spread.of([3, 1])
    assert (found.prompt, found.document) == (None, None)


def test_answers_that_do_not_fit_are_refused_above_a_share(tmp_path: Path, make_tokenizer: Any) -> None:
    short = len(make_tokenizer().prompt_with_answer("answer", 2, "Who?", "Yes").prompt_ids)
    tokenizer = make_tokenizer(max_prompt_tokens=short + 20)
    data = rows(tmp_path / "r.jsonl", ["Yes", "No", "word and " * 40, "Maybe"])
    with pytest.raises(DataError) as caught:
        stage_lengths(instruct(data), tokenizer)
    assert caught.value.what == f"1 of 4 answers of {data} do not fit into the prompt and would be cut"
    assert caught.value.got == f"25.00%, the first in {data}, line 3"
    found = stage_lengths(instruct(data, max_truncated_answers=0.25), tokenizer)
    assert found.cut_answers == 1
    assert found.prompt is not None
    assert found.prompt.max == short + 20


def test_a_cut_answer_is_learnt_as_far_as_it_goes_and_not_closed(tmp_path: Path, make_tokenizer: Any) -> None:
    short = len(make_tokenizer().prompt_with_answer("answer", 2, "Who?", "Yes").prompt_ids)
    tokenizer = make_tokenizer(max_prompt_tokens=short + 20)
    whole = make_tokenizer().prompt_with_answer("answer", 2, "Who?", "word and " * 40)
    cut = tokenizer.prompt_with_answer("answer", 2, "Who?", "word and " * 40, cut_answer=True)
    n_kept = short + 20 - len(whole.prompt_ids)
    assert (cut.prompt_ids, cut.answer_ids, cut.truncated) == (whole.prompt_ids, whole.answer_ids[:n_kept], True)
    assert whole.answer_ids[-1] in tokenizer.stop_ids
    assert cut.answer_ids[-1] not in tokenizer.stop_ids

    from clara_dist.data.examples import read_examples

    examples = read_examples(rows(tmp_path / "r.jsonl", ["word and " * 40, "Yes"]), "instruct")
    batch = CompressionCollator(tokenizer, cut_answers=True)(examples, StepPlan(1, False))
    whole_yes = tokenizer.prompt_with_answer("answer", 2, "Who?", "Yes")
    assert batch.totals.answer_tokens == n_kept + len(whole_yes.answer_ids)


def test_prompts_without_room_are_refused_whatever_is_allowed(tmp_path: Path, make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer(max_prompt_tokens=60)
    data = rows(tmp_path / "r.jsonl", ["Yes", "No"], question=["word " * 200])
    with pytest.raises(DataError) as caught:
        stage_lengths(instruct(data, max_truncated_answers=1.0), tokenizer)
    assert caught.value.what == f"2 of 2 examples of {data} do not fit, however short their answers are"
    assert f"{data}, line 1: the prompt is too long" in str(caught.value)


def test_the_reasoner_reads_whole_questions_or_none(tmp_path: Path, make_tokenizer: Any) -> None:
    path = tmp_path / "r.jsonl"
    good = {"question": "Who?", "answer": "a", "doc_ids": ["a"]}
    path.write_text("".join(json.dumps(r) + "\n" for r in (good, {**good, "question": "Who is it that " * 9})))
    with pytest.raises(DataError, match=r"line 2: the question is too long for this model"):
        stage_lengths(joint(str(path)), make_tokenizer())


def test_too_few_candidates_are_told_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"question": "q", "answer": "a", "doc_ids": ["a"]}\n')
    with pytest.raises(DataError, match=r"line 1: the question has fewer candidates than the stage reads"):
        stage_lengths(joint(str(path), top_k=2), None)
    corpus = {"source": "corpus", "n": 5}
    assert stage_lengths(joint(str(path), top_k=2, candidates=corpus), None).examples == 1


def test_large_data_is_measured_by_an_even_sample_but_judged_whole(
    tmp_path: Path, make_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lengths, "_SAMPLE", 8)
    tokenizer = make_tokenizer()
    n = 100
    data = rows(tmp_path / "r.jsonl", ["a" * (1 + i) for i in range(n)])
    found = stage_lengths(instruct(data), tokenizer)
    assert (found.examples, found.every) == (n, 8)
    taken = [len(tokenizer.prompt_with_answer("answer", 2, "Who?", "a" * (1 + i)).answer_ids) for i in range(0, n, 8)]
    assert found.answer == Spread.of(taken)
    assert np.isclose(found.answer.mean, np.mean(taken))  # type: ignore[union-attr]

    # The 99th is in no sample of every 8th.
    limit = len(tokenizer.prompt_with_answer("answer", 2, "Who?", "a").prompt_ids) + n + 8
    answers = ["a"] * n
    answers[98] = "b c " * 200
    data = rows(tmp_path / "r.jsonl", answers)
    with pytest.raises(DataError, match=r"1 of 100 answers"):
        stage_lengths(instruct(data), make_tokenizer(max_prompt_tokens=limit))
