"""One rank or two, torch or any ZeRO stage: the same gradients, and checkpoints that all of them read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from clara_dist.config import TrainConfig
from clara_dist.training.loop import run
from gloo_ranks import run_on_ranks

# No clipping and no dropout: after one step AdamW's exp_avg is (1 - beta1) times the gradient of the global batch.
PLAIN = {"optimizer": {"lr": 1e-2, "clip_norm": 1e9}, "checkpoint_every": 1, "keep_checkpoints": 10, "steps": 3}
ENGINES: dict[str, dict[str, Any]] = {
    "torch": {"kind": "torch"},
    "zero0": {"kind": "deepspeed", "zero_stage": 0},
    "zero1": {"kind": "deepspeed", "zero_stage": 1},
    "zero2": {"kind": "deepspeed", "zero_stage": 2},
    "zero3": {"kind": "deepspeed", "zero_stage": 3},
}


def checkpoint_of(config: TrainConfig, step: int) -> dict[str, torch.Tensor]:
    path = f"{config.run_dir}/compression/checkpoints/step-{step:08d}"
    return load_file(f"{path}.weights.safetensors") | load_file(f"{path}.optimizer.safetensors")


def cut_back(config: TrainConfig, step: int) -> None:
    """Leave a finished run as a kill after ``step`` would have left it."""
    stage = Path(config.run_dir) / "compression"
    (stage / "done.json").unlink()
    shutil.rmtree(stage / "model")
    for path in (stage / "checkpoints").iterdir():
        if int(path.name.partition(".")[0].removeprefix("step-")) > step:
            path.unlink()


def losses_of(config: TrainConfig) -> list[float]:
    lines = (Path(config.run_dir) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [event["metrics"]["loss"] for event in map(json.loads, lines) if event["step"]]


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def trained_model(config: TrainConfig) -> torch.Tensor:
    """All weights of the model directory, in one row."""
    files = sorted((Path(config.run_dir) / "compression" / "model").rglob("*.safetensors"))
    return torch.cat([tensor.flatten() for path in files for _, tensor in sorted(load_file(path).items())])


@pytest.fixture
def plain_config(make_config: Any) -> Any:
    def make(run_name: str, **fields: Any) -> TrainConfig:
        config: TrainConfig = make_config(run_name, **(PLAIN | fields))
        model = config.model.model_copy(update={"lora": config.model.lora.model_copy(update={"dropout": 0.0})})
        return config.model_copy(update={"model": model})

    return make


def test_two_ranks_and_every_engine_give_the_gradients_of_one_rank(plain_config: Any, tmp_path: Path) -> None:
    alone = plain_config("alone")
    run(alone)
    expected = checkpoint_of(alone, 1)
    gradients = [name for name in expected if name.endswith("/exp_avg")]
    assert sum(bool(expected[name].any()) for name in gradients) > len(gradients) / 2  # LoRA A starts without gradient

    pairs = {name: plain_config(name, workers=2, engine=engine) for name, engine in ENGINES.items()}
    pairs["accumulated"] = plain_config("acc", workers=2, engine=ENGINES["zero2"], gradient_accumulation=2)
    run_on_ranks(list(pairs.values()), 2, tmp_path / "rendezvous")

    for name, config in pairs.items():
        got = checkpoint_of(config, 1)
        assert got.keys() == expected.keys(), name
        flat = [torch.cat([state[key].flatten() for key in gradients]) for state in (got, expected)]
        assert relative_error(*flat) < 1e-5, name
        assert losses_of(config) == pytest.approx(losses_of(alone), rel=1e-5), name
        assert relative_error(trained_model(config), trained_model(alone)) < 1e-5, name
        assert checkpoint_of(config, 2)[gradients[0].replace("exp_avg", "step")] == 2, name


def test_a_checkpoint_goes_on_under_any_engine_and_number_of_ranks(plain_config: Any, tmp_path: Path) -> None:
    whole = plain_config("whole", steps=4)
    run(whole)
    expected = checkpoint_of(whole, 3)
    moved = {name: plain_config(name, steps=4, workers=2, engine=ENGINES[name]) for name in ("zero0", "zero2", "zero3")}
    for config in moved.values():
        shutil.copytree(whole.run_dir, config.run_dir)
        cut_back(config, 1)
    run_on_ranks(list(moved.values()), 2, tmp_path / "rendezvous", resume=True)
    back = plain_config("zero3", steps=4)
    cut_back(back, 2)
    run(back, resume=True)  # two ranks under ZeRO 3, then one without DeepSpeed

    for name, config in moved.items():
        got = checkpoint_of(config, 3)
        # Measured: at most 1.5e-6 for any tensor.
        assert max(relative_error(got[key], expected[key]) for key in expected) < 1e-5, name
