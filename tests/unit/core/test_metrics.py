from __future__ import annotations

import pytest
import torch

from clara_dist.core import recall_at_k, score_entropy, score_margin


def test_one_and_several_positives():
    ranked = [["a", "b", "c"], ["d", "e", "f"], ["g", "h", "i"]]
    positives = [["c"], ["d", "x"], ["i", "g", "h", "h"]]
    assert recall_at_k(ranked, positives, 1) == [0.0, 0.5, pytest.approx(1 / 3)]
    assert recall_at_k(ranked, positives, 2) == [0.0, 0.5, pytest.approx(2 / 3)]
    assert recall_at_k(ranked, positives) == [1.0, 0.5, 1.0]


def test_positions_and_rows_without_positives():
    ranked_BK = torch.tensor([[4, 0], [1, 2], [3, 5]])
    assert recall_at_k(ranked_BK, [(0,), (), (3,)]) == [1.0, 1.0]
    assert recall_at_k(ranked_BK, [(0,), (), (3,)], 1) == [0.0, 1.0]


def test_rows_must_match():
    with pytest.raises(ValueError):
        recall_at_k([["a"]], [["a"], ["b"]], 1)


def test_entropy_counts_real_candidates_alone() -> None:
    scores = torch.tensor([[0.2, 0.2, 0.2, float("nan")], [1.0, 0.0, 0.0, 0.0], [0.3, 0.1, 0.9, 0.9]])
    mask = torch.tensor([[True, True, True, False], [True] * 4, [True, True, False, False]])
    p = torch.tensor([1.0, 2.718281828**-2]) / (1 + 2.718281828**-2)
    expected = [torch.log(torch.tensor(3.0)), torch.tensor(0.0), -(p * p.log()).sum()]
    torch.testing.assert_close(score_entropy(scores[:1], 0.1, mask[:1]), torch.stack(expected[:1]))
    assert float(score_entropy(scores[1:2], 0.01, mask[1:2])) == pytest.approx(0.0, abs=1e-30)
    torch.testing.assert_close(score_entropy(scores[2:], 0.1, mask[2:]), torch.stack(expected[2:]))


def test_margins_of_the_best_and_of_a_group() -> None:
    scores = torch.tensor([[0.5, 0.2, 0.4, 9.0], [0.1, 0.7, 0.3, 0.6], [0.5, 9.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, True, False], [True] * 4, [True, False, False, False]])
    torch.testing.assert_close(score_margin(scores, mask), torch.tensor([0.1, 0.1, torch.nan]), equal_nan=True)
    gold = torch.tensor([[False, True, True, False], [False] * 4, [True, False, False, False]])
    margins = score_margin(scores, mask, gold)
    torch.testing.assert_close(margins, torch.tensor([-0.1, torch.nan, torch.nan]), equal_nan=True)
