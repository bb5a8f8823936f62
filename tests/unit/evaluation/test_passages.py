"""Evaluation on a store of passages: ``coast`` is rows 0 to 2, ``hills`` rows 3 and 4."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from clara_dist.data.questions import EvalQuestion
from clara_dist.evaluation import Bm25Ranker, LatentRanker, evaluate

PASSAGES = ["coast#1", "coast#2", "coast#3", "hills#1", "hills#2"]


@pytest.fixture
def split_store(store):
    store.ids = PASSAGES
    return store


@pytest.fixture
def questions():
    return [
        EvalQuestion("q1", "Which city lies by a fjord?", ("ocean",), ("coast",), ("hills", "coast")),
        EvalQuestion("q2", "Which has hills?", ("nowhere",), ("hills", "coast"), ("hills", "coast")),
    ]


@pytest.fixture
def rankers(split_store, questions):
    #                      coast1 coast2 coast3 hills1 hills2
    rows = [[0.3, 0.2, 0.4, 1.0, 0.9, 0.0], [0.9, 0.8, 0.7, 0.6, 0.1, 0.0]]
    vectors = dict(zip([q.question for q in questions], rows, strict=True))
    reasoner = SimpleNamespace(query=lambda asked: np.array([vectors[text] for text in asked], np.float32))
    return {
        "BM25": Bm25Ranker(split_store, lambda title, text: text),
        "joint STE": LatentRanker(reasoner, split_store, split_store),
    }


def test_a_document_is_found_by_any_passage_and_k_counts_passages(split_store, questions, rankers, generator):
    report = evaluate(questions, split_store, rankers, generator, top_k=2, recall_at=(1, 2, 3, 4), max_tokens=7)
    # q1: hills hills coast coast coast. q2: coast coast coast hills hills, with both documents right.
    expected = {1: (0 + 0.5) / 2, 2: (0 + 0.5) / 2, 3: (1 + 0.5) / 2, 4: 1.0}
    assert report["joint STE"].corpus.recall == pytest.approx(expected)
    assert report["joint STE"].candidates.recall == pytest.approx(expected)
    # "lies" and "fjord" stand in coast#1, "hills" in coast#2.
    assert report["BM25"].corpus.recall[1] == report["BM25"].candidates.recall[1] == (1 + 0.5) / 2
    assert (report.n_documents, report.n_passages) == (2, 5)
    assert "all 2 documents (5 passages)" in report.table()
    assert "answers read the best 2 passages" in report.table()


def test_the_oracle_reads_the_passage_with_the_answer(split_store, questions, rankers, generator):
    report = evaluate(questions, split_store, rankers, generator, max_tokens=7)
    read = {(r.method, r.question_id): r.doc_ids for r in report.records if r.scope == "corpus"}
    assert read["oracle", "q1"] == ("coast#3",)  # "Lima lies by the ocean"
    assert read["oracle", "q2"] == ("hills#1", "coast#1")  # no passage says "nowhere"
    assert read["joint STE", "q1"] == ("hills#1",)


def test_a_passage_may_be_named_by_itself(split_store, questions, rankers, generator):
    named = [EvalQuestion("q1", questions[0].question, ("x",), ("coast#2",))]
    report = evaluate(named, split_store, rankers, generator, recall_at=(4, 5), max_tokens=7)
    assert report["joint STE"].corpus.recall == {4: 0.0, 5: 1.0}
