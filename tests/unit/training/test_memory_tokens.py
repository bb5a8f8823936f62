"""The life of the memory tokens' embeddings: trained in two stages, saved, reloaded, frozen in the third."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from clara_dist.config import TrainConfig
from clara_dist.config.model import ClaraConfig
from clara_dist.model.clara import ClaraModel
from clara_dist.training.loop import run

ENGINES = {"torch": {"kind": "torch"}, "zero2": {"kind": "deepspeed", "zero_stage": 2}}
# Without decay a row only moves where a gradient reaches it.
PLAIN = {"steps": 2, "checkpoint_every": 1, "optimizer": {"lr": 1e-2, "weight_decay": 0.0}}


def rows_of(model: str) -> torch.Tensor:
    return load_file(Path(model) / "memory_embeddings.safetensors")["memory"]


def checkpoint_rows(config: TrainConfig, stage: str, step: int) -> dict[str, torch.Tensor]:
    """The memory rows of a checkpoint, and AdamW's first moments of them."""
    path = f"{config.run_dir}/{stage}/checkpoints/step-{step:08d}"
    tensors = load_file(f"{path}.weights.safetensors") | load_file(f"{path}.optimizer.safetensors")
    return {name: tensor for name, tensor in tensors.items() if "memory_rows" in name}


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_every_row_trains_in_two_stages_and_across_a_reload(make_config: Any, engine: dict[str, Any]):
    compression = make_config("compression", engine=engine, **PLAIN)
    first = run(compression)["compression"]
    assert isinstance(compression.model, ClaraConfig)
    new = ClaraModel.from_base(compression.model, seed=compression.stages[0].seed).memory_rows.detach()
    assert_all_rows_trained(new, rows_of(first), checkpoint_rows(compression, "compression", 1))
    # That resuming from a checkpoint gives the same rows bit for bit is part of test_loop's comparison.
    assert torch.equal(ClaraModel.from_pretrained(first).memory_rows, rows_of(first))

    instruct = make_config("instruct", engine=engine, stage="instruct", **PLAIN).model_copy(update={"model": first})
    second = run(instruct)["instruct"]
    assert_all_rows_trained(rows_of(first), rows_of(second), checkpoint_rows(instruct, "instruct", 1))


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_the_joint_stage_leaves_them_bit_for_bit(make_joint_config: Any, tiny_clara_dir: Path, engine: dict[str, Any]):
    config = make_joint_config("joint", engine=engine, **PLAIN)
    third = run(config)["joint"]
    assert torch.equal(rows_of(third), rows_of(str(tiny_clara_dir)))
    assert checkpoint_rows(config, "joint", 1) == {}


def assert_all_rows_trained(before: torch.Tensor, after: torch.Tensor, checkpoint: dict[str, torch.Tensor]) -> None:
    (moments,) = (tensor for name, tensor in checkpoint.items() if name.endswith("exp_avg"))
    assert moments.shape == before.shape
    assert (moments.norm(dim=1) > 0).all()
    assert ((after - before).norm(dim=1) > 1e-4).all()
