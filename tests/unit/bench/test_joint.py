"""The joint step, and the two that compress again: one function, three prices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from clara_dist.bench import joint
from clara_dist.bench.joint import JointBench, JointBenchSettings, run_bench
from clara_dist.errors import TrainingError

TINY = JointBenchSettings(shape="tiny", batch_size=2, n_candidates=4, top_k=3, n_documents=24, repeats=1)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> JointBench:
    return JointBench(TINY, tmp_path_factory.mktemp("joint"))


def test_the_three_steps_have_the_same_loss_and_gradients(bench: JointBench) -> None:
    found = bench.differences()
    assert found["loss"] > 1
    for name in ("naive", "lean"):
        stored = found["memories_as_stored"][name]
        assert stored["loss"] <= 1e-5
        # Measured: 2e-6.
        assert 0 < max(stored["gradient/query_reasoner"], stored["gradient/generator"]) <= 1e-4
        # What half precision of the store costs: rounding of 5e-4, averaged.
        assert found["memories_in_fp32"][name]["loss"] < 1e-3


def test_both_roles_are_trained_and_only_they(bench: JointBench) -> None:
    for step in bench.steps(rounded=True).values():
        _, gradients = bench._loss_and_gradients(step)
        assert set(gradients) == {"query_reasoner", "generator"}
        assert all(float(gradient.norm()) > 1e-4 for gradient in gradients.values())


def test_a_step_that_computes_something_else_is_refused(bench: JointBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint, "GRADIENT_TOLERANCE", 1e-9)
    with pytest.raises(TrainingError, match="the naive step differs from ours: gradient/"):
        bench.differences()


def test_figures_fit_each_other(tmp_path: Path) -> None:
    text = run_bench(TINY, tmp_path / "joint.json", profile=True)
    found = json.loads((tmp_path / "joint.json").read_text(encoding="utf-8"))
    wall = {name: step["wall_s"]["median"] for name, step in found["step"].items()}
    assert found["ratio"]["naive"]["wall_s"] == wall["naive"] / wall["stored"]
    parts = found["step"]["stored"]["parts_s"]
    assert all(parts[part] > 0 for part in ("reason", "gather", "select", "generate", "backward", "update"))
    assert parts["compress"] == 0
    assert found["settings"]["top_k"] == 3
    assert f"{found['ratio']['lean']['wall_s']:.1f} (" in text
    assert "aten::mm" in text
    torch.set_num_threads(1)
