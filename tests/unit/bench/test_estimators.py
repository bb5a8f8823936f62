"""What the comparison of the estimators asks for, and how it reports; the runs themselves are stubs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clara_dist.bench import demo_runs
from clara_dist.bench.estimators import EstimatorBench, run_bench


def test_every_k_and_estimator_from_one_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[str] = []
    asked: list[tuple[str, list[str]]] = []

    def train_and_score(config: Any, run_dir: Path, overrides: list[str]) -> dict[str, float]:
        asked.append((run_dir.name, overrides))
        return {"R@1": 0.5, "R@3": 0.75, "R@5": 1.0, "EM@1": 0.25, "EM@K": len(asked) / 100}

    monkeypatch.setattr(demo_runs, "prepare", lambda config, write_world: prepared.append(config.run_dir))
    monkeypatch.setattr(demo_runs, "train_and_score", train_and_score)
    output = tmp_path / "figures" / "estimators.json"
    text = run_bench(EstimatorBench(tmp_path, seeds=(4, 5), n_diagnosed=0), output)

    assert prepared == [str(tmp_path / "seed-4"), str(tmp_path / "seed-5")]
    names = [name for name, _ in asked]
    assert len(names) == 2 * 9
    assert (
        names[:5]
        == names[9:14]
        == [
            "k1-sequential-0.002",
            "k3-sequential-0.002",
            "k3-sequential-0.001",
            "k3-leave_own_out-0.002",
            "k3-leave_own_out-0.001",
        ]
    )
    assert asked[0][1] == ["top_k=1", "estimator=sequential", "optimizer.lr=0.002"]
    assert asked[17][1] == ["top_k=5", "estimator=leave_own_out", "optimizer.lr=0.001"]
    assert "5  leave_own_out   0.001    5   0.500   0.750   1.000   0.250   0.180" in text.splitlines()
    written = json.loads(output.read_text(encoding="utf-8"))
    assert written["settings"] == {"work_dir": str(tmp_path), "seeds": [4, 5], "n_diagnosed": 0}
    assert [run["EM@K"] for run in written["seeds"]["5"]["runs"]] == [i / 100 for i in range(10, 19)]
    expected = {"k": 3, "estimator": "leave_own_out", "lr": 0.002}
    assert written["seeds"]["4"]["runs"][3] == expected | {
        "R@1": 0.5,
        "R@3": 0.75,
        "R@5": 1.0,
        "EM@1": 0.25,
        "EM@K": 0.04,
    }
