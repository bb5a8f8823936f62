from __future__ import annotations

import statistics

from clara_dist.bench.corpus import make_passages, n_words


def test_lengths_are_those_of_the_measured_passages() -> None:
    lengths = [n_words((i + 0.5) / 10_000) for i in range(10_000)]
    assert abs(statistics.mean(lengths) - 95.1) < 2
    assert abs(statistics.pstdev(lengths) - 45.2) < 2
    assert (n_words(0), n_words(0.5), n_words(1)) == (8, 109, 210)


def test_the_same_seed_makes_the_same_passages() -> None:
    passages = make_passages(50, seed=3)
    assert passages == make_passages(50, seed=3) != make_passages(50, seed=4)
    assert all(8 <= len(text.split()) <= 210 for text in passages)
