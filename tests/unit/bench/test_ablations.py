"""Mean and spread over seeds; `bench ablations` itself takes an hour."""

from __future__ import annotations

import pytest

from clara_dist.bench.ablations import RUNS, Seed, summary, table


def seed(recall: float) -> Seed:
    scores = {"R@1": recall, "R@3": 1.0, "R@5": 1.0, "EM@1": recall, "EM@K": recall}
    return {"machine": {}, "runs": [{"group": run.group, "name": run.name, "scores": scores} for run in RUNS]}


def test_each_run_has_its_mean_and_its_spread() -> None:
    rows = summary({31: seed(0.9), 32: seed(0.6), 33: seed(0.75)})
    assert [(row["group"], row["name"]) for row in rows] == [(run.group, run.name) for run in RUNS]
    assert rows[3]["R@1"] == {"mean": pytest.approx(0.75), "low": 0.6, "high": 0.9}
    lines = table(rows, 3).splitlines()
    assert lines[0].startswith("3 seeds")
    assert lines[3].split()[-6:] == ["(0.600-0.900)", "1.000", "1.000", *["0.750", "(0.600-0.900)"] * 2][-6:]


def test_a_spread_that_rounding_could_be_is_left_out() -> None:
    lines = table(summary({31: seed(0.9), 32: seed(0.904)}), 2).splitlines()
    assert lines[3].split()[-1] == "0.902"
