from __future__ import annotations

from collections import Counter

import pytest
import torch

from clara_dist.errors import RequestError
from clara_dist.inference.engine import Sampling
from clara_dist.inference.growing_text import GrowingText
from clara_dist.inference.sampling import TokenSampler, next_tokens


def test_greedy_and_drawn_rows_share_a_batch() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [0.0, 0.0, 9.0]])
    samplers = [TokenSampler(Sampling(1)), TokenSampler(Sampling(1, temperature=1e-3, seed=1))]
    assert next_tokens(logits, samplers) == [1, 2]


def test_no_temperature_overflows() -> None:
    # A probability that is NaN would end the whole batch, neighbours included.
    logits = torch.tensor([-80.0, 90.0, 89.9, 0.0])
    for temperature in (5e-324, 1e-320, 1e-45, 1e-30, 1e-9):
        assert TokenSampler(Sampling(1, temperature=temperature, seed=0)).draw(logits) == 1
    hot = TokenSampler(Sampling(1, temperature=1e308, seed=0))
    assert {hot.draw(logits) for _ in range(100)} == {0, 1, 2, 3}


def test_the_nucleus_is_the_fewest_tokens_that_reach_top_p() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    for top_p, n_allowed in ((0.4, 1), (0.5, 1), (0.51, 2), (0.8, 2), (0.81, 3), (1.0, 4)):
        sampler = TokenSampler(Sampling(1, temperature=1.0, top_p=top_p, seed=3))
        drawn = Counter(sampler.draw(logits) for _ in range(400))
        assert set(drawn) == set(range(n_allowed)), top_p
    drawn = Counter(TokenSampler(Sampling(1, temperature=1.0, top_p=0.8, seed=i)).draw(logits) for i in range(2000))
    # .5 of .8, within five standard deviations of a share of 2,000 draws.
    assert drawn[0] / 2000 == pytest.approx(0.625, abs=5 * (0.625 * 0.375 / 2000) ** 0.5)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 0},
        {"max_tokens": 1, "temperature": -0.1},
        {"max_tokens": 1, "temperature": float("nan")},
        {"max_tokens": 1, "temperature": float("inf")},
        {"max_tokens": 1, "top_p": 0.0},
        {"max_tokens": 1, "top_p": 1.1},
        {"max_tokens": 1, "stop": ("a", "")},
    ],
)
def test_sampling_refuses(fields: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        Sampling(**fields)  # type: ignore[arg-type]


PIECES = {1: "one ", 2: "two ", 3: "thr", 4: "ee", 5: "\N{REPLACEMENT CHARACTER}", 6: ""}


def decode(ids: list[int]) -> str:
    # 5 begins a character of two bytes that 6 completes.
    return "".join(PIECES[i] for i in ids).replace(
        "\N{REPLACEMENT CHARACTER}", "é" if 6 in ids else "\N{REPLACEMENT CHARACTER}"
    )


@pytest.mark.parametrize(
    ("ids", "stop", "pieces", "stopped"),
    [
        ([1, 2], (), ["one ", "two ", ""], False),
        ([1, 5, 6], (), ["one ", "", "é", ""], False),
        ([1, 5], (), ["one ", "", "\N{REPLACEMENT CHARACTER}"], False),
        ([1, 2, 3, 4], ("three",), ["one ", "two ", "", "", ""], True),
        ([1, 3, 2], ("three",), ["one ", "", "thrtwo ", ""], False),
        ([3, 4, 1], ("ree ", "eeo"), ["th", "", "r", ""], True),
        ([1, 2], ("two ", "o"), ["", "", ""], True),
        ([1, 3], ("three",), ["one ", "", "thr"], False),
    ],
)
def test_text_grows_by_what_is_certain(ids: list[int], stop: tuple[str, ...], pieces: list[str], stopped: bool) -> None:
    text = GrowingText(decode, stop)  # type: ignore[arg-type]
    assert [*(text.add(i) for i in ids), text.end()] == pieces
    assert text.stopped is stopped
