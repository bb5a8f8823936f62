"""Any rank killed at any moment: the run ends as the undisturbed one, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from clara_dist.config import TrainConfig
from killed_ranks import Kill, run_ranks

N_STEPS = 9
# One run, killed by all of these in turn; it writes a checkpoint every second step and keeps the newest only.
KILLS = [
    Kill(0, "begin", 0),
    Kill(1, "begin", 1),
    Kill(0, "publish", "step-00000002.optimizer"),
    Kill(0, "publish", "step-00000002.json"),
    Kill(1, "update", 3),
    Kill(0, "published", "step-00000004.json"),
    Kill(1, "begin", 4),
    Kill(0, "update", 5),
    Kill(0, "delete", "step-00000004.weights"),
    Kill(1, "begin", 7),
    Kill(0, "update", 8),
]


def model_of(config: TrainConfig) -> dict[str, torch.Tensor]:
    files = sorted((Path(config.run_dir) / "compression" / "model").rglob("*.safetensors"))
    return {f"{path.parent.name}/{name}": tensor for path in files for name, tensor in load_file(path).items()}


def losses_of(config: TrainConfig) -> dict[int, float]:
    """By step; of a step that was done again, what it was the last time."""
    lines = (Path(config.run_dir) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return {event["step"]: event["metrics"]["loss"] for event in map(json.loads, lines) if event["step"]}


def test_a_run_whose_ranks_are_killed_again_and_again_ends_as_the_undisturbed_one(
    make_config: Any, tmp_path: Path
) -> None:
    fields = {"steps": N_STEPS, "checkpoint_every": 2, "keep_checkpoints": 1, "workers": 2}
    whole, killed = make_config("whole", **fields), make_config("killed", **fields)
    assert whole.model.lora.dropout > 0  # else the random state would not matter
    assert run_ranks(whole, 2, tmp_path / "rendezvous")
    for i, kill in enumerate(KILLS):
        assert not run_ranks(killed, 2, tmp_path / f"rendezvous-{i}", kill)
    assert run_ranks(killed, 2, tmp_path / "rendezvous-end")

    expected, got = model_of(whole), model_of(killed)
    assert expected.keys() == got.keys()
    assert [name for name in expected if not torch.equal(expected[name], got[name])] == []
    assert losses_of(killed) == losses_of(whole)
    assert sorted(losses_of(whole)) == list(range(1, N_STEPS + 1))
    folder = Path(killed.run_dir) / "compression" / "checkpoints"
    assert {path.name.partition(".")[0] for path in folder.iterdir()} == {"step-00000008"}
