"""Numbers of the steps between reports, and where their time goes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clara_dist.training import stopwatch as stopwatches
from clara_dist.training.batches import Totals
from clara_dist.training.collectives import Group
from clara_dist.training.metrics import Interval
from clara_dist.training.steps import StepOutput, observe
from clara_dist.training.stopwatch import PARTS, Stopwatch

CPU = torch.device("cpu")


class Twins(Group):
    """Two workers that found the same, but the second took three times as long."""

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        other = tensor.clone()
        other[: 1 + len(PARTS)] *= 3
        return [tensor, other]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(stopwatches.time, "perf_counter", lambda: now[0])
    return now


def output(loss: float, recalls: list[float], margins: list[float]) -> StepOutput:
    observed = {"score_margin": observe(torch.tensor(margins)), "gold_in_candidates": torch.zeros(2)}
    return StepOutput(torch.tensor(loss), {"mse": torch.tensor(2 * loss)}, recalls, observed)


def test_reports_are_means_over_steps_questions_and_workers(clock: list[float]) -> None:
    watch = Stopwatch(CPU)
    interval = Interval(Twins(0, 2, CPU), watch, batch_size=6, top_k=5)
    for step in range(2):
        watch.start("reason")
        clock[0] += 1.0
        watch.start("backward")
        clock[0] += 2.0
        # Two micro-batches of one step: their losses are shares of one mean.
        outputs = [output(0.25 + step, [1.0], [0.5, float("nan")]), output(0.25, [0.0, 0.0], [0.1, 0.3])]
        interval.add(outputs, Totals(9, 10, 120, truncated=1))
    metrics = interval.report()
    # Twins: sums over workers are twice as much, and the loss of the global batch is the sum.
    assert metrics["loss"] == pytest.approx(2 * (0.5 + 1.5) / 2)
    assert metrics["mse"] == pytest.approx(2 * metrics["loss"])
    assert metrics["recall@5"] == pytest.approx(1 / 3)
    assert metrics["score_margin"] == pytest.approx(0.3)
    assert "gold_in_candidates" not in metrics  # nobody has observed it
    assert metrics["truncated"] == pytest.approx(0.1)
    assert metrics["tokens_per_s"] == pytest.approx(240 / 6)
    assert metrics["examples_per_s"] == pytest.approx(12 / 6)
    assert metrics["time/reason"] == pytest.approx(1.0 * (1 + 3) / 2)
    assert metrics["time/backward"] == pytest.approx(2.0 * (1 + 3) / 2)
    assert "time/search" not in metrics
    assert next(iter(metrics)) == "loss"


def test_rates_leave_out_evaluations(clock: list[float]) -> None:
    watch = Stopwatch(CPU)
    interval = Interval(Group(0, 1, CPU), watch, batch_size=4, top_k=1)
    watch.start("generate")
    clock[0] += 2.0
    with watch.hold("evaluate"):
        watch.start("generate")  # the same code runs in an evaluation
        clock[0] += 8.0
    interval.add([output(1.0, [], [0.0])], Totals(1, 1, 100))
    metrics = interval.report()
    assert metrics["tokens_per_s"] == pytest.approx(50)
    assert (metrics["time/generate"], metrics["time/evaluate"]) == (2.0, 8.0)


def test_a_part_goes_on_over_a_lap(clock: list[float]) -> None:
    watch = Stopwatch(CPU)
    watch.start("data")
    clock[0] += 1.0
    assert watch.lap()["data"] == 1.0
    clock[0] += 0.5
    watch.start("update")
    clock[0] += 0.25
    parts: dict[str, Any] = watch.lap()
    assert (parts["data"], parts["update"]) == (0.5, 0.25)
