from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from clara_dist.errors import CheckpointError
from clara_dist.training import checkpoint as checkpoints
from clara_dist.training.checkpoint import Checkpoint, load_checkpoint, load_weights, require_same, save_checkpoint
from clara_dist.training.engine import EngineState


def checkpoint(step: int) -> Checkpoint:
    states = {"a.weight": {"exp_avg": torch.arange(3.0), "step": torch.tensor(float(step))}, "b": {}}
    weights = {"a.weight": torch.ones(3), "b": torch.zeros(1)}
    return Checkpoint(step, {"stage": {"seed": 1}}, EngineState(weights, states), {"0/cpu": torch.get_rng_state()})


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    saved = checkpoint(7)
    loaded = load_checkpoint(save_checkpoint(tmp_path, saved, keep=1))
    assert (loaded.step, loaded.settings) == (7, {"stage": {"seed": 1}})
    torch.testing.assert_close(loaded.engine.weights, saved.engine.weights, rtol=0, atol=0)
    torch.testing.assert_close(loaded.engine.optimizer, saved.engine.optimizer, rtol=0, atol=0)
    assert torch.equal(loaded.rng["0/cpu"], saved.rng["0/cpu"])


def test_a_writer_that_dies_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, checkpoint(1), keep=1)

    def dies(*args: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoints.os, "replace", dies)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(tmp_path, checkpoint(2), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert load_checkpoint(tmp_path / "step-00000001").step == 1


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".step-00000002.abcd1234").mkdir()
    save_checkpoint(tmp_path, checkpoint(2), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_settings_that_differ_are_named_with_both_values() -> None:
    with pytest.raises(CheckpointError) as caught:
        require_same({"stage": {"seed": 1, "lr": 0.1}}, {"stage": {"seed": 2, "lr": 0.1}, "store": "x"}, Path("run"))
    assert caught.value.got == "stage.seed: 1 there, 2 here; store: absent there, x here"


def test_weights_of_another_shape_are_refused() -> None:
    with pytest.raises(CheckpointError, match="do not fit"):
        load_weights({"w": nn.Parameter(torch.zeros(2))}, {"w": torch.zeros(3)})
