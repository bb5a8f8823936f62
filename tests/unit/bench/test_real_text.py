"""The run on real passages, on a dozen in the same layout: nothing is learned, but everything happens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clara_dist.bench.real_text import REPORT, RealTextBench, run_bench
from clara_dist.bench.real_text_data import RealTextSizes, read_passages
from clara_dist.data.documents import content_id
from clara_dist.errors import ConfigError, DataError

SIZES = RealTextSizes(vocabulary=300, hidden_size=32, n_layers=1, n_rows=80)
PEOPLE = ("Orla", "Bram", "Cato", "Dina", "Egil", "Faye", "Gwen", "Hugo", "Inez", "Jory")


def rows() -> list[dict[str, Any]]:
    return [
        {
            "data_type": "qa",
            "question": [f"Where was {name} born?", f"How old is {name}, who lives in Port-{name}?"],
            "answers": [f"{name}ville", f"{30 + number} years."],
            "docs": [f"This a document about {name}. \n {name} was born in {name}ville {30 + number} years ago, and "],
        }
        for number, name in enumerate(PEOPLE)
    ]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> RealTextBench:
    folder = tmp_path_factory.mktemp("real-text")
    # A second row of a passage belongs to the passage: it must not be on both sides.
    again = rows()[0] | {"question": ["Who was born in Orlaville?"], "answers": ["Orla"]}
    data = folder / "passages.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in [*rows(), again]), encoding="utf-8")
    bench = RealTextBench(str(data), folder / "out", seed=3, scale=0.001, sizes=SIZES)
    run_bench(bench)
    return bench


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_method_is_measured_on_the_held_out_questions(bench: RealTextBench) -> None:
    report = json.loads((bench.out / REPORT).read_text(encoding="utf-8"))
    evaluation = report["evaluation"]
    methods = {row["method"]: row for row in evaluation["methods"]}
    words = ["words of all passages", "words of known passages"]
    assert list(methods) == [
        *("BM25", "untrained reasoner", *words, "answer loss alone", "joint STE", "oracle", "closed book")
    ]
    asked = report["data"]["held_out_questions"]
    assert (report["data"]["passages"], report["data"]["held_out_passages"]) == (10, 2)
    assert (evaluation["n_questions"], evaluation["n_documents"]) == (asked, 10)
    assert report["data"]["training_questions"] + asked == 21
    # Each question names its passage's person, and nobody else does: only what the code does wrong could miss it.
    assert methods["BM25"]["corpus"]["recall"] == {"1": 1.0, "5": 1.0, "20": 1.0}
    assert methods["joint STE"]["corpus"]["recall"]["20"] == 1.0
    assert {"base", "compression", "joint STE", "evaluate"} <= set(report["seconds"])


def test_held_out_questions_are_in_no_training_file(bench: RealTextBench) -> None:
    passages = read_passages(bench.data, bench.seed)
    held_out = [passage for passage in passages if passage.held_out]
    unseen = {question for passage in held_out for question, _ in passage.pairs}
    trained = set()
    for name in ("base", "compression", "words", "known-words", "joint"):
        for row in read(bench.out / "data" / f"{name}.jsonl"):
            trained |= set(row["question"] if isinstance(row["question"], list) else [row["question"]])
    assert len(unseen) == len(held_out) * 2
    assert "Where was Orla born?" in trained  # real questions are in there, of other passages
    assert not trained & unseen
    known = {doc for row in read(bench.out / "data" / "known-words.jsonl") for doc in row["docs"]}
    assert not known & {passage.text for passage in held_out}


def test_candidates_are_distinct_and_hold_the_passage(bench: RealTextBench) -> None:
    ids = {content_id(passage.text) for passage in read_passages(bench.data, bench.seed)}
    for question in read(bench.out / "data" / "questions.jsonl"):
        assert set(question["candidates"]) == ids  # 20, or all there are
        assert set(question["positives"]) < ids


def test_another_seed_does_not_go_on_in_the_same_place(bench: RealTextBench) -> None:
    with pytest.raises(ConfigError, match="other settings"):
        run_bench(RealTextBench(bench.data, bench.out, seed=4, scale=bench.scale, sizes=SIZES))


def test_another_layout_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    two = rows()[0] | {"docs": ["one", "two"]}
    data.write_text(json.dumps(two) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="not one passage"):
        read_passages(str(data), 1)
    data.write_text(json.dumps(rows()[0]) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="too few passages"):
        read_passages(str(data), 1)
