from __future__ import annotations

import pytest

from clara_dist.errors import ConfigError
from clara_dist.inference.buckets import length_buckets, packed_groups


def test_longest_first_and_within_the_budget() -> None:
    # 9 alone would leave 3 of the 12; 5 + 4 costs 2 * 5; 3 + 2 + 2 costs 3 * 3.
    assert length_buckets([3, 9, 5, 2, 4, 2], max_batch_tokens=12) == [[1], [2, 4], [0, 3, 5]]


def test_a_row_over_the_budget_goes_alone() -> None:
    assert length_buckets([50, 1], max_batch_tokens=10) == [[0], [1]]


def test_no_rows_make_no_batch() -> None:
    assert length_buckets([], max_batch_tokens=10) == []


def test_budget_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="max_batch_tokens"):
        length_buckets([1], max_batch_tokens=0)


def test_packed_rows_keep_their_order_and_pad_nothing() -> None:
    assert packed_groups([3, 9, 5, 2, 4, 2], max_batch_tokens=12) == [[0, 1], [2, 3, 4], [5]]
    assert packed_groups([50, 1, 12], max_batch_tokens=12) == [[0], [1], [2]]
    assert packed_groups([], max_batch_tokens=12) == []
    with pytest.raises(ConfigError, match="max_batch_tokens"):
        packed_groups([1], max_batch_tokens=0)
