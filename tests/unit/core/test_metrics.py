from __future__ import annotations

import pytest
import torch

from clara_dist.core import recall_at_k


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
