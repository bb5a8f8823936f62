"""Writes the demo world as files that the real road reads: corpus, training rows, questions, an untrained tiny base.

::

    DIR/corpus.jsonl        {doc_id, title, text, metadata: {split, person, relation}}
    DIR/base.jsonl          {data_type, question[], answers[], docs[], supervise_documents?}
    DIR/compression.jsonl   {data_type, question[], answers[], docs[]}
    DIR/instruct.jsonl      the same, one to three documents a row
    DIR/joint.jsonl         {question, answer, doc_ids[], pos_index[]}
    DIR/questions.jsonl     {question_id, question, answer, positives[], candidates[]}; held-out people
    DIR/held-out.jsonl      the same questions as rows of the joint stage, to watch while it trains
    DIR/base_init/          config.json and tokenizer of the base that stage ``base`` trains from scratch

The first three files are a curriculum: rows in reading order, ``batch_size`` rows a step (``shuffle: false``). The same
arguments give the same bytes.

The multi-hop variant is the same world, and asks for two facts about a person at once: evaluation questions have two
positives and an answer that needs both, and so have half of the joint rows and most instruct rows that show several
passages. All else is equal.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clara_dist.data.demo_language import WHO_QUESTION
from clara_dist.data.demo_tokenizer import write_base
from clara_dist.data.demo_world import (
    N_QUESTION_WORDINGS,
    N_WORDINGS,
    CandidateMaker,
    DemoWorld,
    Golds,
    PartnerMaker,
    Passage,
    compound_answer,
    compound_question,
    pick,
    shuffled,
)

Row = dict[str, Any]
DemoVariant = Literal["one-hop", "multi-hop"]


@dataclass(frozen=True)
class DemoSizes:
    """How large the demo is. The defaults are the demo of the README.

    Attributes:
        n_train: People that training may know; there are eight passages about each.
        n_held_out: People in the corpus and the evaluation only.
        n_questions: Evaluation questions about held-out people.
        n_candidates: Candidates of a training or evaluation question.
        batch_size: Rows a step, for the curricula.
        base_steps: Steps that ``base.jsonl`` lasts for; the next two likewise.
        hidden_size: D of the tiny base; its feed-forward width is 2 D.
        variant: ``multi-hop`` questions need two passages.
    """

    n_train: int = 480
    n_held_out: int = 80
    n_questions: int = 400
    n_candidates: int = 20
    batch_size: int = 64
    base_steps: int = 300
    compression_steps: int = 150
    instruct_steps: int = 120
    hidden_size: int = 128
    variant: DemoVariant = "one-hop"


# Until then the base sees single passages only: reading comes before choosing.
_SINGLE_PASSAGE_SHARE = 0.6
_SEVERAL_PASSAGES_SHARE = 0.4
_SUPERVISED_SHARE = 0.2
_INSTRUCT_SINGLE_SHARE = 0.2
# Of the instruct rows that may show several passages, in the multi-hop variant. Not of the base's: a base that is
# trained on such rows, and longer for them, compresses so that an untrained reasoner finds next to nothing.
_TWO_FACTS_SHARE = 0.6
_JOINT_TWO_FACTS_SHARE = 0.5


def write_demo(directory: str | Path, seed: int, sizes: DemoSizes = DemoSizes()) -> DemoWorld:
    """Write all files of a demo world.

    Args:
        directory: Created if needed; files in it are replaced.
        seed: Decides the world and the rows.
        sizes: `DemoSizes`.
    """
    world = DemoWorld(seed, sizes.n_train, sizes.n_held_out)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    rows = _ReadingRows(world.train_passages, sizes.variant)
    questions = list(_evaluation_rows(world, sizes, random.Random(f"questions {seed}")))
    files: dict[str, Iterable[Row]] = {
        "corpus": map(_document, world.passages),
        "base": rows.base(sizes, random.Random(f"base {seed}")),
        "compression": rows.compression(sizes, random.Random(f"compression {seed}")),
        "instruct": rows.instruct(sizes, random.Random(f"instruct {seed}")),
        "joint": _joint_rows(world, sizes, random.Random(f"joint {seed}")),
        "questions": questions,
        "held-out": map(_as_joint_row, questions),
    }
    for name, content in files.items():
        with open(directory / f"{name}.jsonl", "w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
    write_base(directory / "base_init", sizes.hidden_size)
    return world


def _document(passage: Passage) -> Row:
    return {
        "doc_id": passage.doc_id,
        "title": passage.person.name,
        "text": passage.text,
        "metadata": {
            "split": "held_out" if passage.person.held_out else "train",
            "person": passage.person.name,
            "relation": passage.relation.noun,
        },
    }


class _ReadingRows:
    """Rows of the three stages that teach to read passages: as text, then as memories."""

    def __init__(self, passages: Sequence[Passage], variant: DemoVariant) -> None:
        self._passages = passages
        self._partners = PartnerMaker(passages) if variant == "multi-hop" else None

    def base(self, sizes: DemoSizes, rng: random.Random) -> Iterator[Row]:
        for step in range(sizes.base_steps):
            may_be_several = step >= _SINGLE_PASSAGE_SHARE * sizes.base_steps
            several = may_be_several and rng.random() < _SEVERAL_PASSAGES_SHARE
            for _ in range(sizes.batch_size):
                row = self._several(rng, 2, 3) if several else self._single(rng)
                if not several and rng.random() < _SUPERVISED_SHARE:
                    row["supervise_documents"] = True
                yield row

    def compression(self, sizes: DemoSizes, rng: random.Random) -> Iterator[Row]:
        for _ in range(sizes.compression_steps * sizes.batch_size):
            yield self._single(rng)

    def instruct(self, sizes: DemoSizes, rng: random.Random) -> Iterator[Row]:
        for _ in range(sizes.instruct_steps):
            single = rng.random() < _INSTRUCT_SINGLE_SHARE
            for _ in range(sizes.batch_size):
                yield self._single(rng) if single else self._several(rng, 1, 3, self._partners)

    def _single(self, rng: random.Random) -> Row:
        """A passage with 40 % paraphrase, 20 % "who is it about?", 40 % question and answer."""
        passage = pick(rng, self._passages)
        task = rng.random()
        if task < 0.4:
            wording = pick(rng, [i for i in range(N_WORDINGS) if i != passage.wording])
            return _row("paraphrase", [], passage.paraphrase(wording), [passage])
        if task < 0.6:
            return _row("answer", [WHO_QUESTION], passage.person.name, [passage])
        return _row("answer", [_question((passage,), rng)], passage.value, [passage])

    def _several(self, rng: random.Random, at_least: int, at_most: int, partners: PartnerMaker | None = None) -> Row:
        """A question over some passages; with ``partners``, it often takes two of them to answer it."""
        golds: Golds = (pick(rng, self._passages),)
        if partners is not None and rng.random() < _TWO_FACTS_SHARE:
            golds = partners.pair(golds[0], rng)
        passages = list(golds)
        n = at_least + int(rng.random() * (at_most - at_least + 1))
        while len(passages) < n:
            other = pick(rng, self._passages)
            if other not in passages:
                passages.append(other)
        return _row("answer", [_question(golds, rng)], compound_answer(golds), shuffled(rng, passages))


def _row(data_type: str, questions: list[str], answer: str, passages: list[Passage]) -> Row:
    return {"data_type": data_type, "question": questions, "answers": [answer], "docs": [p.text for p in passages]}


def _question(golds: Golds, rng: random.Random) -> str:
    return compound_question(golds, [_wording(rng) for _ in golds])


def _wording(rng: random.Random) -> int:
    return int(rng.random() * N_QUESTION_WORDINGS)


def _joint_rows(world: DemoWorld, sizes: DemoSizes, rng: random.Random) -> Iterator[Row]:
    """Every question about every training person, once, with candidates about training people.

    In the multi-hop variant, half of them are asked together with another one about the person.
    """
    candidates = CandidateMaker(world.train_passages)
    partners = PartnerMaker(world.train_passages)
    questions = [(passage, i) for passage in world.train_passages for i in range(N_QUESTION_WORDINGS)]
    for gold, wording in shuffled(rng, questions):
        golds: Golds = (gold,)
        wordings = [wording]
        if sizes.variant == "multi-hop" and rng.random() < _JOINT_TWO_FACTS_SHARE:
            golds, wordings = partners.pair(gold, rng), [wording, _wording(rng)]
        drawn = candidates.draw(golds, sizes.n_candidates, rng)
        yield {
            "question": compound_question(golds, wordings),
            "answer": compound_answer(golds),
            "doc_ids": [p.doc_id for p in drawn],
            "pos_index": [drawn.index(p) for p in golds],
        }


def _evaluation_rows(world: DemoWorld, sizes: DemoSizes, rng: random.Random) -> Iterator[Row]:
    """Questions about held-out people, each in one wording, with candidates from the whole corpus."""
    candidates = CandidateMaker(world.passages)
    partners = PartnerMaker(world.held_out_passages)
    asked = shuffled(rng, world.held_out_passages)[: sizes.n_questions]
    for i, gold in enumerate(asked):
        golds = partners.pair(gold, rng) if sizes.variant == "multi-hop" else (gold,)
        yield {
            "question_id": f"q{i:03}",
            "question": _question(golds, rng),
            "answer": compound_answer(golds),
            "positives": [p.doc_id for p in golds],
            "candidates": [p.doc_id for p in candidates.draw(golds, sizes.n_candidates, rng)],
        }


def _as_joint_row(question: Row) -> Row:
    candidates = question["candidates"]
    positives = [candidates.index(doc_id) for doc_id in question["positives"]]
    return {
        "question": question["question"],
        "answer": question["answer"],
        "doc_ids": candidates,
        "pos_index": positives,
    }
