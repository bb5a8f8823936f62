"""A DeepSpeed JSON of the user's: what it sets, and what it may not contradict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from clara_dist.config import EngineConfig, OptimizerConfig, TrainConfig, load_config

JSON: dict[str, Any] = {
    "bf16": {"enabled": True},
    "fp16": {"enabled": False, "loss_scale": 0},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto"}},
    "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": "auto"}},
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "offload_param": {"device": "cpu"},
        "reduce_bucket_size": "auto",
    },
    "gradient_clipping": "auto",
    "train_micro_batch_size_per_gpu": "auto",
}
STAGE = {"stage": "compression", "data": "d", "steps": 40, "batch_size": 8, "gradient_accumulation": 2}


def run_of(settings: dict[str, Any], **optimizer: Any) -> TrainConfig:
    stage = STAGE | {"optimizer": {"schedule": "linear"} | optimizer}
    fields = {"run_dir": "r", "model": "m", "workers": 2, "stages": [stage], "engine": {"deepspeed_json": settings}}
    return TrainConfig.model_validate(fields)


def test_the_json_sets_fields_of_ours_and_leaves_its_autos_to_them() -> None:
    engine = run_of(JSON).engine
    assert (engine.zero_stage, engine.offload, engine.dtype) == (3, "all", "bfloat16")
    assert engine.deepspeed_json["optimizer"] == {"type": "AdamW"}
    assert "reduce_bucket_size" not in engine.deepspeed_json["zero_optimization"]
    assert "gradient_clipping" not in engine.deepspeed_json
    assert EngineConfig.model_validate(engine.model_dump()) == engine


def test_a_path_is_read_where_the_configuration_is_made(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(JSON), encoding="utf-8")
    fields = ["run_dir=r", "model=m", 'stages=[{"stage": "compression", "data": "d", "steps": 1}]']
    config = load_config(
        TrainConfig, overrides=[*fields, f"engine.deepspeed_json={path}", "stages.0.optimizer.schedule=linear"]
    )
    assert config.engine == run_of(JSON).engine
    with pytest.raises(ValidationError, match=r"none\.json"):
        EngineConfig.model_validate({"deepspeed_json": str(tmp_path / "none.json")})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"zero_stage": 2, "deepspeed_json": JSON}, r"zero_optimization\.stage means zero_stage = 3, but .* set to 2"),
        ({"dtype": "float32", "deepspeed_json": JSON}, r"bf16\.enabled means dtype = bfloat16, but .* set to float32"),
        ({"offload": "none", "deepspeed_json": JSON}, r"means offload = all, but offload is set to none"),
        ({"deepspeed_json": {"bf16": {"enabled": True}, "fp16": {"enabled": True}}}, "both bf16 and fp16"),
        ({"deepspeed_json": [1]}, "neither a JSON object nor the path"),
        ({"kind": "torch", "zero_stage": 2}, "need kind = deepspeed"),
        ({"offload": "optimizer"}, "offload = optimizer needs zero_stage 1 or more, not 0"),
        ({"offload": "all", "zero_stage": 2}, "offload = all needs zero_stage 3 or more, not 2"),
    ],
)
def test_contradicting_fields_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EngineConfig.model_validate(fields)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_batch_size": 16}, "train_batch_size = 16, but batch_size is 8"),
        ({"train_micro_batch_size_per_gpu": 4}, "but the examples of a micro-batch is 2"),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps = 1, but gradient_accumulation is 2"),
        ({"gradient_clipping": 0.5}, r"gradient_clipping = 0\.5, but optimizer\.clip_norm is 1\.0"),
        ({"optimizer": {"type": "Lion", "params": {}}}, "optimizer.type = 'Lion', but optimizer.name is 'AdamW'"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 3e-4}}}, r"lr = 0\.0003, but optimizer\.lr is 0\.0001"),
        ({"optimizer": {"type": "AdamW", "params": {"momentum": 1}}}, "momentum = 1 has no match"),
        ({"scheduler": {"type": "WarmupCosineLR"}}, "schedule = linear, there is 'WarmupDecayLR'"),
        ({"scheduler": {"params": {"warmup_num_steps": 10}}}, "= 10, but the steps of the warm-up is 2"),
    ],
)
def test_a_json_that_contradicts_its_stage_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        run_of(settings)


def test_a_json_that_says_what_the_stage_says_is_taken() -> None:
    agreeing = {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}},
        "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 5, "total_num_steps": 40}},
    }
    assert run_of(agreeing, warmup_steps=5).engine.zero_stage == 0


def test_learning_rates_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValidationError, match="not above 0"):
        OptimizerConfig(lr_by_role={"generator": 0.0})
    with pytest.raises(ValidationError, match="lr_by_role is for adamw"):
        OptimizerConfig(name="muon", lr_by_role={"base": 1e-3})
