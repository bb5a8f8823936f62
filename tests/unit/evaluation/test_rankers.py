from __future__ import annotations

import math

import numpy as np
import pytest

from clara_dist.data.questions import EvalQuestion
from clara_dist.errors import DataError
from clara_dist.evaluation import Bm25Ranker, LatentRanker, Ranking
from clara_dist.evaluation.baselines import _best
from clara_dist.evaluation.rankers import known_rows, unbiased_candidates


def found(rankings: list[Ranking]) -> list[tuple[str, ...]]:
    for ranking in rankings:
        assert list(ranking.scores) == sorted(ranking.scores, reverse=True)
        assert len(ranking.scores) == len(ranking.doc_ids)
    return [ranking.doc_ids for ranking in rankings]


def _text_only(title: str, text: str) -> str:
    return text


def test_latent_ranking_by_hand(store, reasoner, questions):
    ranker = LatentRanker(reasoner, store, store)
    assert found(ranker.among_candidates(questions, 2)) == [("fjord", "oslo"), ("rome", "lima"), ("lima", "oslo")]
    assert found(ranker.among_candidates(questions, 9))[2] == ("lima", "oslo", "bern")
    assert found(ranker.in_corpus(questions, 3)) == [
        ("fjord", "oslo", "lima"),
        ("rome", "fjord", "lima"),
        ("lima", "rome", "oslo"),
    ]
    assert len(found(ranker.in_corpus(questions, 50))[0]) == store.n_documents


def test_bm25_ranking_by_hand(store, questions):
    """Question 1 shares "lies" and "fjord" with oslo, "lies" with lima, and three times "fjord" with fjord."""
    ranker = Bm25Ranker(store, _text_only)
    assert found(ranker.in_corpus(questions[:1], 3)) == [("oslo", "fjord", "lima")]
    # Only rome has hills; the others tie at 0 and come in the store's order.
    hills = [EvalQuestion("q", "hills?", ("rome",), ("rome",))]
    assert found(ranker.in_corpus(hills, 3)) == [("rome", "oslo", "lima")]
    assert found(ranker.among_candidates(questions[:1], 3)) == [("oslo", "fjord", "rome")]


def test_bm25_scores_are_lucenes(store):
    """idf = ln(1 + (S - n + 1/2) / (n + 1/2)); tf part f / (f + k1 (1 - b + b |d| / avg))."""
    scores_S = Bm25Ranker(store, _text_only)._scores(["fjord"])
    # Words after stop words and one-letter words: oslo 3, rome 4, lima 3, fjord 3, bern 3.
    average = 16 / 5
    idf = math.log(1 + (5 - 2 + 0.5) / (2 + 0.5))
    norm = 1.5 * (0.25 + 0.75 * 3 / average)
    expected = [idf * 1 / (1 + norm), 0, 0, idf * 3 / (3 + norm), 0]
    np.testing.assert_allclose(scores_S, expected, rtol=1e-6)


def test_bm25_indexes_what_the_template_gives(store):
    question = [EvalQuestion("q", "Bern?", ("x",), ("bern",))]
    ranker = Bm25Ranker(store, lambda title, text: "Bern" if title == "Lima" else text)
    assert found(ranker.in_corpus(question, 1)) == [("lima",)]


def test_bm25_without_any_known_word(store):
    ranker = Bm25Ranker(store, _text_only)
    for text in ("the of and", "zzz qqq", "?"):
        assert found(ranker.in_corpus([EvalQuestion("q", text, ("x",), ("oslo",))], 2)) == [("oslo", "rome")]
    with pytest.raises(DataError, match="no words in the corpus"):
        Bm25Ranker(store, lambda title, text: "the - a")


def test_a_method_that_knows_nothing_gains_nothing_from_the_order_of_the_file(store):
    """Gold first in every list: BM25 without a shared word must be right by chance only, here 1 of 5."""
    ids = ["oslo", "rome", "lima", "fjord", "bern"]
    questions = [EvalQuestion(f"q{i}", "zzz", ("x",), ("oslo",), tuple(ids)) for i in range(500)]
    first = [doc_ids[0] for doc_ids in found(Bm25Ranker(store, _text_only).among_candidates(questions, 1))]
    assert 70 <= first.count("oslo") <= 130  # 100 +- 3.4 standard deviations; the order is fixed by the ids
    again = EvalQuestion("q1", "other", ("y",), ("rome",), tuple(reversed(ids)))
    assert unbiased_candidates(again) == unbiased_candidates(questions[1])


def test_best_of_equals_is_the_first():
    scores_S = np.array([0.0, 2.0, 1.0, 2.0, 0.0, 1.0], np.float32)
    assert _best(scores_S, 1) == [1]
    assert _best(scores_S, 3) == [1, 3, 2]
    assert _best(scores_S, 5) == [1, 3, 2, 5, 0]
    assert _best(scores_S, 99) == [1, 3, 2, 5, 0, 4]


def test_unknown_documents_are_named(store):
    with pytest.raises(DataError, match="2 missing, the first is 'paris'"):
        known_rows(store, [["oslo"], ["paris", "bern", "york"]])
    assert [rows.tolist() for rows in known_rows(store, [["lima", "oslo"], [], ["bern"]])] == [[2, 0], [], [4]]
