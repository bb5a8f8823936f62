from __future__ import annotations

import pytest

from clara_dist.config.synthesize import SynthesisConfig
from clara_dist.synthesis import prompts
from clara_dist.synthesis.estimate import Estimate, estimate


@pytest.mark.parametrize(
    ("written", "requests"),
    [
        ({}, 5),
        ({"n_complex": 0}, 4),
        ({"n_paraphrases": 0}, 3),
        ({"n_paraphrases": 3}, 7),
        ({"n_simple": 0, "n_complex": 0}, 2),
    ],
)
def test_requests_of_a_document_that_needs_no_round(written: dict[str, int], requests: int) -> None:
    assert estimate(SynthesisConfig(**written), 400, rounds=0).requests == requests


def test_tokens_follow_from_the_length() -> None:
    config = SynthesisConfig(n_complex=0, n_paraphrases=0, n_simple=2)
    own = (len(prompts.SIMPLE) // 4) + (len(prompts.CHECK) // 4)
    # Written once and checked once, with two pairs of 40 tokens to read in the check.
    assert estimate(config, 4000, rounds=0) == Estimate(2, 2 * 1000 + own + 80, 80 + 60)


def test_each_round_writes_and_checks_again() -> None:
    config = SynthesisConfig(n_paraphrases=2)
    totals = [estimate(config, 1000, rounds=rounds) for rounds in range(3)]
    assert [total.requests for total in totals] == [6, 6 + 6, 6 + 12]
    assert totals[2].prompt_tokens - totals[1].prompt_tokens == totals[1].prompt_tokens - totals[0].prompt_tokens > 0
