"""When a gradient is worth an alarm."""

from __future__ import annotations

import pytest

from clara_dist.errors import TrainingError
from clara_dist.training.alarms import GradientAlarm

CHOICE = {"candidates": 20.0, "score_margin": 0.8}


def alarms(norms: list[float], recalls: list[float | None], role: str = "query_reasoner") -> list[str]:
    said: list[str] = []
    alarm = GradientAlarm("joint", said.append, temperature=0.02)
    for step, (norm, recall) in enumerate(zip(norms, recalls, strict=True), start=1):
        known = {} if recall is None else {"recall@1": recall}
        alarm.check(step, {role: norm, "other": 1.0}, CHOICE | known)
    return said


def test_no_gradient_in_the_first_step_is_an_error_that_says_what_the_choice_is_like() -> None:
    with pytest.raises(TrainingError, match=r"no gradient reaches query_reasoner[\s\S]*20 candidates a question"):
        alarms([0.0], [0.5])


def test_a_choice_that_is_right_has_no_gradient_and_raises_no_alarm() -> None:
    """K = 1: softmax(s / tau) is 1 for gold, and its gradient underflows."""
    assert alarms([1.0, 0.1, 1e-3, *[0.0] * 20], [0.2, 0.8, 0.97, *[0.99] * 20]) == []


def test_a_choice_that_is_stuck_is_told_once_with_its_margin() -> None:
    expected = "the best 0.8 ahead at tau 0.02"
    stuck = alarms([1.0, *[0.0] * 20], [0.2] * 21)
    assert len(stuck) == 1
    assert "exactly zero at step 2" in stuck[0]
    assert expected in stuck[0]
    assert len(alarms([1.0, *[0.0] * 3], [None] * 4)) == 1  # nobody knows whether it is right


def test_a_gradient_that_vanishes_for_long_is_told_and_a_short_one_is_not() -> None:
    assert alarms([1.0, *[1e-6] * 9, 1.0, *[1e-6] * 9], [0.2] * 20) == []
    (said,) = alarms([1.0, *[1e-6] * 10], [0.2] * 11)
    assert "all but vanished for 10 reports (1e-06 of its largest)" in said


def test_a_gradient_that_is_not_finite_is_told() -> None:
    (said,) = alarms([1.0, float("nan")], [1.0, 1.0], role="generator")
    assert said == "WARNING stage joint: the gradient of generator is not finite at step 2"
