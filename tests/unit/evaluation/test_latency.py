from __future__ import annotations

from itertools import accumulate

import pytest

from clara_dist.evaluation.latency import ask_alone, percentiles


def test_steps_are_told_apart_and_the_first_question_warms_up(store, questions, reasoner, generator):
    # Between two readings: reason, retrieve, generate; then nothing until the next question.
    warm_up = [100.0, 100.0, 100.0, 0.0]
    asked = [0.1, 0.01, 1.0, 0.0, 0.2, 0.02, 2.0, 0.0, 0.6, 0.03, 6.0]
    readings = accumulate([0.0, *warm_up, *asked])
    seconds = ask_alone(
        questions, reasoner, store, store, generator, top_k=1, max_tokens=7, clock=lambda: next(readings)
    )
    assert seconds == [pytest.approx(each) for each in ((0.1, 0.01, 1.0), (0.2, 0.02, 2.0), (0.6, 0.03, 6.0))]
    found = percentiles(seconds)
    assert found["questions"] == 3
    assert {step: figures["p50"] for step, figures in found["ms"].items()} == pytest.approx(
        {"reason": 200, "retrieve": 20, "generate": 2000, "total": 2220}
    )
    # Linear between the second and the third of three: 2 * 0.9 - 1 and 2 * 0.99 - 1 of the way.
    assert found["ms"]["generate"]["p90"] == pytest.approx(2000 + 0.8 * 4000)
    assert found["ms"]["generate"]["p99"] == pytest.approx(2000 + 0.98 * 4000)
