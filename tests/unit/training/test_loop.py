"""Whole tiny runs with the torch engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from clara_dist.errors import CheckpointError, TrainingError
from clara_dist.training.loop import run


def weights_of(model_dir: str) -> dict[str, torch.Tensor]:
    return {
        f"{p.parent.name}/{name}": t
        for p in sorted(Path(model_dir).rglob("*.safetensors"))
        for name, t in load_file(p).items()
    }


def test_compression_run_learns_and_leaves_the_reasoner_alone(make_config: Any) -> None:
    events: list[Any] = []
    outputs = run(make_config("a", steps=30), on_progress=events.append)
    losses = [event.metrics["loss"] for event in events if event.step]
    assert len(losses) == 30
    assert losses[-1] < losses[0] / 2
    weights = weights_of(outputs["compression"])
    moved = {
        role
        for role in ("compressor", "query_reasoner", "generator")
        if any(t.any() for name, t in weights.items() if name.startswith(role) and "lora_B" in name)
    }
    assert moved == {"compressor", "generator"}


class Stop(Exception):
    pass


def stop_at(step: int) -> Any:
    def on_progress(event: Any) -> None:
        if event.step == step:
            raise Stop

    return on_progress


@pytest.mark.parametrize("engine", [{"kind": "torch"}, {"kind": "deepspeed", "zero_stage": 0}], ids=["torch", "zero0"])
def test_resuming_equals_not_having_stopped(make_config: Any, engine: dict[str, Any]) -> None:
    config = make_config("whole", engine=engine, steps=6)
    whole = weights_of(run(config)["compression"])

    config = make_config("stopped", engine=engine, steps=6, checkpoint_every=2)
    with pytest.raises(Stop):
        run(config, on_progress=stop_at(5))
    resumed = weights_of(run(config, resume=True)["compression"])

    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_used_run_dir_needs_resume(make_config: Any) -> None:
    config = make_config("used", steps=1)
    first = run(config)
    with pytest.raises(TrainingError, match="holds a training run"):
        run(config)
    assert run(config, resume=True) == first


def test_resuming_with_other_data_is_refused(make_config: Any, rows_path: str) -> None:
    config = make_config("changed", steps=4, checkpoint_every=2)
    with pytest.raises(Stop):
        run(config, on_progress=stop_at(3))
    rows = Path(rows_path).read_text(encoding="utf-8")
    Path(rows_path).write_text(rows.replace("1810", "1999"), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"order\.fingerprint"):
        run(config, resume=True)


def test_resuming_with_another_learning_rate_is_refused(make_config: Any) -> None:
    with pytest.raises(Stop):
        run(make_config("rate", steps=4, checkpoint_every=2), on_progress=stop_at(3))
    with pytest.raises(CheckpointError, match=r"stage\.optimizer\.lr: 0\.01 there, 0\.02 here"):
        run(make_config("rate", steps=4, checkpoint_every=2, optimizer={"lr": 0.02}), resume=True)
