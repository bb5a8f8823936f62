"""Whole tiny runs: what they learn, how they end, how they go on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from clara_dist.config import StageConfig
from clara_dist.errors import CheckpointError, TrainingError
from clara_dist.training.loop import run

ENGINES = [{"kind": "torch"}, {"kind": "deepspeed", "zero_stage": 0}]


class Killed(Exception):
    """Stands for a kill: raised between two steps, it leaves the run directory as a kill does."""


def killed_at(step: int, stage: str = "compression") -> Any:
    def on_progress(event: Any) -> None:
        if (event.stage, event.step) == (stage, step):
            raise Killed

    return on_progress


def weights_of(model_dir: str) -> dict[str, torch.Tensor]:
    files = sorted(Path(model_dir).rglob("*.safetensors"))
    return {f"{path.parent.name}/{name}": tensor for path in files for name, tensor in load_file(path).items()}


def test_compression_learns_and_leaves_the_reasoner_alone(make_config: Any) -> None:
    events: list[Any] = []
    outputs = run(make_config("a", steps=30), on_progress=events.append)
    losses = [event.metrics["loss"] for event in events if event.step]
    assert len(losses) == 30
    assert losses[-1] < losses[0] / 2
    trained = {
        name.split("/")[0] for name, t in weights_of(outputs["compression"]).items() if "lora_B" in name and t.any()
    }
    assert trained == {"compressor", "generator"}


def test_a_base_from_scratch_carries_the_next_stage(make_config: Any, tmp_path: Path, tiny_base_dir: Path) -> None:
    blank = tmp_path / "blank"
    blank.mkdir()
    for path in tiny_base_dir.iterdir():
        if path.suffix == ".json":
            (blank / path.name).write_bytes(path.read_bytes())
    muon = {"name": "muon", "lr": 0.02, "adamw_lr": 1e-2}
    config = make_config("scratch", stage="base", base_dir=str(blank), optimizer=muon, steps=20)
    base = str(tmp_path / "scratch" / "base" / "model")
    model = config.model.model_copy(update={"base_model": base})
    compression = StageConfig.model_validate(
        config.stages[0].model_dump() | {"stage": "compression", "optimizer": {}, "steps": 2}
    )
    events: list[Any] = []
    outputs = run(
        config.model_copy(update={"model": model, "stages": (*config.stages, compression)}), on_progress=events.append
    )

    losses = [event.metrics["loss"] for event in events if event.stage == "base"]
    assert losses[-1] < losses[0] / 2
    assert outputs["base"] == base
    assert json.loads((Path(outputs["compression"]) / "config.json").read_text())["base_model"] == base
    assert AutoModelForCausalLM.from_pretrained(base).config.hidden_size == 32


ZERO2_BF16 = {"kind": "deepspeed", "zero_stage": 2, "dtype": "bfloat16"}


@pytest.mark.parametrize("engine", [*ENGINES, ZERO2_BF16], ids=["torch", "zero0", "zero2-bf16"])
def test_resuming_equals_not_having_stopped(make_config: Any, engine: dict[str, Any]) -> None:
    whole = weights_of(run(make_config("whole", engine=engine, steps=6))["compression"])
    config = make_config("killed", engine=engine, steps=6, checkpoint_every=2)
    with pytest.raises(Killed):
        run(config, on_progress=killed_at(5))
    resumed = weights_of(run(config, resume=True)["compression"])

    assert whole.keys() == resumed.keys()
    # Bit for bit, dropout included: the random state is part of a checkpoint.
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_finished_stages_are_not_trained_again(make_config: Any) -> None:
    config = make_config("two", steps=3, checkpoint_every=2)
    instruct = StageConfig.model_validate(config.stages[0].model_dump() | {"stage": "instruct"})
    config = config.model_copy(update={"stages": (*config.stages, instruct)})
    with pytest.raises(Killed):
        run(config, on_progress=killed_at(3, "instruct"))
    events: list[Any] = []
    outputs = run(config, resume=True, on_progress=events.append)
    assert [(event.stage, event.step) for event in events if event.step] == [("instruct", 3)]
    assert list(outputs) == ["compression", "instruct"]
    assert json.loads((Path(outputs["instruct"]) / "config.json").read_text())["stage"] == "instruct"


def test_a_used_run_dir_needs_resume(make_config: Any) -> None:
    config = make_config("used", steps=1)
    first = run(config)
    with pytest.raises(TrainingError, match="holds a training run"):
        run(config)
    assert run(config, resume=True) == first


def test_resuming_with_other_data_is_refused(make_config: Any, rows_path: str) -> None:
    config = make_config("changed", steps=4, checkpoint_every=2)
    with pytest.raises(Killed):
        run(config, on_progress=killed_at(3))
    rows = Path(rows_path).read_text(encoding="utf-8")
    Path(rows_path).write_text(rows.replace("1810", "1999"), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"order\.fingerprint"):
        run(config, resume=True)


def test_resuming_with_another_learning_rate_is_refused(make_config: Any) -> None:
    with pytest.raises(Killed):
        run(make_config("rate", steps=4, checkpoint_every=2), on_progress=killed_at(3))
    with pytest.raises(CheckpointError, match=r"stage\.optimizer\.lr: 0\.01 there, 0\.02 here"):
        run(make_config("rate", steps=4, checkpoint_every=2, optimizer={"lr": 0.02}), resume=True)


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(make_config: Any) -> None:
    whole = weights_of(run(make_config("sound", steps=6))["compression"])
    config = make_config("damaged", steps=6, checkpoint_every=2)
    with pytest.raises(Killed):
        run(config, on_progress=killed_at(5))
    file = Path(config.run_dir) / "compression" / "checkpoints" / "step-00000004.optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    events: list[Any] = []
    resumed = weights_of(run(config, resume=True, on_progress=events.append)["compression"])
    texts = "\n".join(event.text for event in events)
    assert "the checkpoint of step 4" in texts
    assert "goes on from step 2" in texts
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_checkpoints_hold_what_is_trained_and_nothing_of_the_base(make_config: Any, tiny_base_dir: Path) -> None:
    config = make_config("small", steps=3, checkpoint_every=2)
    events: list[Any] = []
    run(config, on_progress=events.append)
    said = re.search(r"([\d,]+) trained weights", "\n".join(event.text for event in events))
    assert said is not None
    n_trained = int(said[1].replace(",", ""))
    folder = Path(config.run_dir) / "compression" / "checkpoints"
    sizes = {path.name.split(".")[1]: path.stat().st_size for path in folder.glob("*.safetensors")}
    n_tensors = len(load_file(folder / "step-00000002.weights.safetensors"))
    # Four bytes a weight, two moments of AdamW each; a header of some 150 bytes a tensor, three tensors in optimizer.
    assert 4 * n_trained < sizes["weights"] < 4 * n_trained + 300 * n_tensors
    assert 8 * n_trained < sizes["optimizer"] < 8 * n_trained + 900 * n_tensors
    assert sizes["rng"] < 6000
    assert sum(sizes.values()) < 0.9 * (tiny_base_dir / "model.safetensors").stat().st_size


def test_only_the_newest_checkpoints_are_kept(make_config: Any) -> None:
    config = make_config("kept", steps=5, checkpoint_every=1, keep_checkpoints=2)
    run(config)
    directory = Path(config.run_dir) / "compression" / "checkpoints"
    assert sorted(path.name for path in directory.glob("*.json")) == ["step-00000003.json", "step-00000004.json"]


@pytest.mark.parametrize("engine", ENGINES, ids=["torch", "zero0"])
def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_step(make_config: Any, engine: dict[str, Any]) -> None:
    config = make_config("diverged", engine=engine, optimizer={"lr": 1e30, "warmup_ratio": 0.0})
    with pytest.raises(TrainingError, match="not finite at step 2"):
        run(config)


@pytest.mark.parametrize(
    ("engine", "tolerance"),
    [
        ({"kind": "torch", "gradient_checkpointing": True}, 1e-6),
        ({"kind": "torch", "dtype": "bfloat16"}, 1e-2),  # measured: 2e-3
        ({"kind": "torch", "dtype": "float16"}, 1e-2),
        (ZERO2_BF16 | {"gradient_checkpointing": True}, 1e-2),
    ],
    ids=["recomputed", "torch-bf16", "torch-fp16", "zero2-bf16-recomputed"],
)
def test_recomputation_and_bfloat16_follow_the_float32_run(
    make_config: Any, engine: dict[str, Any], tolerance: float
) -> None:
    def losses(name: str, engine: dict[str, Any]) -> list[float]:
        events: list[Any] = []
        run(make_config(name, engine=engine, optimizer={"lr": 1e-3}), on_progress=events.append)
        return [event.metrics["loss"] for event in events if event.step]

    assert losses("changed", engine) == pytest.approx(losses("plain", {"kind": "torch"}), rel=tolerance)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"kind": "deepspeed", "zero_stage": 0, "dtype": "float16"}, "scales no loss at ZeRO 0"),
        ({"kind": "deepspeed", "zero_stage": 1, "dtype": "float16"}, "float16 on GPUs only"),
        ({"kind": "deepspeed", "deepspeed_json": {"zero_optimization": {"reduce_bucket_size": "x"}}}, "refuses its"),
    ],
)
def test_engines_that_cannot_work_say_so(make_config: Any, engine: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        run(make_config("wrong", engine=engine))
