"""A random number of slots a batch: the same on all ranks, and the same again after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from clara_dist.config import TrainConfig
from clara_dist.training.batches import plan_step
from clara_dist.training.loop import run
from gloo_ranks import run_on_ranks

SLOTS = {
    "seed": 1,  # draws 1, 2 and 3 slots, and both sources of candidates, in six steps
    "top_k": 3,
    "temperature": 0.1,
    "candidates": {"source": "mixed", "n": 4, "corpus_share": 0.5},
    "steps": 6,
    "batch_size": 4,
    "checkpoint_every": 2,
}


class Killed(Exception):
    """Raised between two steps, it leaves the run directory as a kill does."""


def losses_of(config: TrainConfig) -> list[float]:
    lines = (Path(config.run_dir) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [event["metrics"]["loss"] for event in map(json.loads, lines) if event["step"]]


def weights_of(config: TrainConfig) -> dict[str, torch.Tensor]:
    files = sorted((Path(config.run_dir) / "joint" / "model").rglob("*.safetensors"))
    return {f"{path.parent.name}/{name}": tensor for path in files for name, tensor in load_file(path).items()}


def test_two_ranks_draw_the_slots_of_one(make_joint_config: Any, tmp_path: Path) -> None:
    estimators = ("sequential", "leave_own_out")
    alone = [make_joint_config(f"alone-{name}", estimator=name, **SLOTS) for name in estimators]
    plans = [plan_step(alone[0].stages[0], step) for step in range(6)]
    assert {plan.n_slots for plan in plans} == {1, 2, 3}
    assert {plan.from_corpus for plan in plans} == {False, True}
    pairs = [make_joint_config(f"pair-{name}", estimator=name, workers=2, **SLOTS) for name in estimators]
    for config in alone:
        run(config)
    run_on_ranks(pairs, 2, tmp_path / "rendezvous")
    # A rank with another number of slots, or another source of candidates, would have another loss.
    losses = [losses_of(config) for config in alone]
    assert [losses_of(config) for config in pairs] == [pytest.approx(one, rel=1e-5) for one in losses]
    assert losses[0] != losses[1]


def test_a_resumed_run_draws_the_slots_of_an_undisturbed_one(make_joint_config: Any) -> None:
    def kill(event: Any) -> None:
        if event.step == 5:
            raise Killed

    whole, config = make_joint_config("whole", **SLOTS), make_joint_config("killed", **SLOTS)
    run(whole)
    with pytest.raises(Killed):
        run(config, on_progress=kill)
    run(config, resume=True)
    expected, resumed = weights_of(whole), weights_of(config)
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
