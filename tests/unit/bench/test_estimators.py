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
    assert len(names) == 2 * 7
    assert (
        names[:4]
        == names[7:11]
        == [
            "k1-sequential-published",
            "k3-sequential-published",
            "k3-sequential-slowly",
            "k3-leave_own_out-slowly",
        ]
    )
    assert asked[1][1] == ["top_k=3", "estimator=sequential", "random_slots=false"]
    assert asked[13][1] == ["top_k=5", "estimator=leave_own_out", "optimizer.lr=0.001", "steps=500"]
    assert "5  leave_own_out  slowly       5   0.500   0.750   1.000   0.250   0.140" in text.splitlines()
    written = json.loads(output.read_text(encoding="utf-8"))
    assert written["settings"] == {"work_dir": str(tmp_path), "seeds": [4, 5], "n_diagnosed": 0}
    assert [run["EM@K"] for run in written["seeds"]["5"]["runs"]] == [i / 100 for i in range(8, 15)]
    run = written["seeds"]["4"]["runs"][3]
    assert (run["k"], run["estimator"], run["settings"]) == (3, "leave_own_out", ["optimizer.lr=0.001", "steps=500"])
    assert [run[column] for column in ("R@1", "R@3", "R@5", "EM@1", "EM@K")] == [0.5, 0.75, 1.0, 0.25, 0.04]
