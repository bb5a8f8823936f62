"""A run's plan: what is trained, and the arithmetic of memory by ZeRO stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clara_dist.config import ClaraConfig, EngineConfig, LoraSettings, StageConfig, TrainConfig
from clara_dist.errors import TrainingError
from clara_dist.model import ClaraModel
from clara_dist.training.lengths import DataLengths, Spread
from clara_dist.training.plan import measure, plan_run, table, to_json


def make_config(base_dir: Path, **changed: Any) -> TrainConfig:
    model = ClaraConfig(base_model=str(base_dir), n_memory_tokens=3, doc_max_tokens=24, lora=LoraSettings(r=2))
    joint = {"stage": "joint", "data": "j.jsonl", "store": "s", "steps": 30, "candidates": {"n": 5}}
    stages = ({"stage": "compression", "data": "c.jsonl", "steps": 10}, joint)
    shared = {"batch_size": 8, "gradient_accumulation": 2}
    values = {"run_dir": "run", "model": model, "workers": 2, "engine": EngineConfig(zero_stage=2, dtype="bfloat16")}
    return TrainConfig(**values | {"stages": tuple(StageConfig.model_validate(s | shared) for s in stages)} | changed)


def lengths(n: int, **longest: int) -> DataLengths:
    """All examples equally long."""
    spreads = {name: Spread(n, value, value, value, value, value, value) for name, value in longest.items()}
    none = dict.fromkeys(("question", "answer", "prompt", "document", "documents"))
    counts = {"rows": n, "examples": n, "left_out": 0, "without_positives": 0, "every": 1}
    return DataLengths(**counts | none | spreads | {"cut_answers": 0, "cut_documents": 0})


def test_what_each_stage_trains_and_for_how_long(tiny_base_dir: Path) -> None:
    config = make_config(tiny_base_dir)
    plan = plan_run(config, {"joint": lengths(60, question=20, prompt=50, answer=4)})
    compression, joint = plan.stages
    assert isinstance(config.model, ClaraConfig)
    clara = ClaraModel.from_base(config.model)
    lora = sum(t.numel() for t in clara.role_state("generator").values())
    assert compression.trained == {"compressor": lora, "generator": lora, "memory_embeddings": 3 * 32}
    assert joint.trained == {"query_reasoner": lora, "generator": lora}
    total = sum(parameter.numel() for parameter in clara.parameters())
    for stage in plan.stages:
        assert sum(stage.trained.values()) + sum(stage.frozen.values()) == total
        assert stage.batch == (2, 2, 2)
    assert compression.epochs is None
    assert joint.epochs == 30 * 8 / 60
    assert joint.step_tokens == 8 * (50 + 20 + 3)
    assert (joint.longest.encoded, joint.longest.prompt, joint.longest.answer) == (23, 50, 4)
    # Nothing is known of the first stage's data: it is planned for what the model reads at most.
    assert (compression.longest.encoded, compression.longest.prompt) == (24 + 3 + 3, 1024)


def test_memory_by_zero_stage(tiny_base_dir: Path) -> None:
    joint = plan_run(make_config(tiny_base_dir), {}).stages[1]
    n, trained = sum(joint.frozen.values()), sum(joint.trained.values())
    state = {zero: (m.weights, m.gradients, m.optimizer) for zero, m in joint.memory.items()}
    # bfloat16: 2 bytes a weight and gradient; fp32 copy and two moments, 12 bytes. ZeRO 0 trains in fp32.
    assert state == {
        0: (2 * n + 4 * trained, 4 * trained, 8 * trained),
        1: (2 * (n + trained), 2 * trained, 6 * trained),
        2: (2 * (n + trained), trained, 6 * trained),
        3: (n + trained, trained, 6 * trained),
    }
    # Micro-batch 2, 5 candidates of 3 x 32, fp16 and fp32 beside each other.
    assert {m.candidates for m in joint.memory.values()} == {2 * 5 * 3 * 32 * 6}
    memory = joint.memory[2]
    parts = (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.logits, memory.candidates)
    assert memory.total == sum(parts)
    assert joint.zero_stage == 2


def test_what_is_offloaded_is_in_cpu_memory(tiny_base_dir: Path) -> None:
    plain = plan_run(make_config(tiny_base_dir), {}).stages[1].memory
    engine = EngineConfig(zero_stage=2, dtype="bfloat16", offload="optimizer")
    away = plan_run(make_config(tiny_base_dir, engine=engine), {}).stages[1].memory
    assert {zero: (m.optimizer, m.host) for zero, m in away.items()} == {
        0: (plain[0].optimizer, 0),  # ZeRO 0 cannot
        **{zero: (0, plain[zero].optimizer) for zero in (1, 2, 3)},
    }
    assert away[2].total == plain[2].total - plain[2].optimizer
    engine = EngineConfig(zero_stage=3, dtype="bfloat16", offload="all")
    memory = plan_run(make_config(tiny_base_dir, engine=engine), {}).stages[1].memory[3]
    assert (memory.weights, memory.optimizer, memory.host) == (0, 0, plain[3].weights + plain[3].optimizer)


def test_the_torch_engine_keeps_its_trained_weights_in_fp32(tiny_base_dir: Path) -> None:
    plan = plan_run(make_config(tiny_base_dir, engine=EngineConfig(kind="torch", dtype="bfloat16")), {})
    (memory,) = plan.stages[0].memory.values()
    n, trained = (sum(weights.values()) for weights in (plan.stages[0].frozen, plan.stages[0].trained))
    assert (memory.weights, memory.gradients, memory.optimizer) == (2 * n + 4 * trained, 4 * trained, 8 * trained)


def test_checkpointing_and_longer_texts_change_activations(tiny_base_dir: Path) -> None:
    known = {"compression": lengths(9, document=27, prompt=60, answer=4)}
    plain, checkpointed = (
        plan_run(make_config(tiny_base_dir, engine=EngineConfig(gradient_checkpointing=on)), known).stages[0].memory[0]
        for on in (False, True)
    )
    assert checkpointed.activations < 0.7 * plain.activations
    longer = {"compression": lengths(9, document=27, prompt=120, answer=4)}
    twice = plan_run(make_config(tiny_base_dir, engine=EngineConfig()), longer).stages[0].memory[0]
    assert twice.activations > 1.5 * plain.activations
    assert twice.logits == plain.logits == 2 * 4 * plan_run(make_config(tiny_base_dir), {}).sizes.vocab_size * 12


def test_data_that_is_there_is_measured(tiny_base_dir: Path, tmp_path: Path) -> None:
    data = tmp_path / "j.jsonl"
    row = {"question": "When?", "answer": "1871", "doc_ids": ["a", "b", "c"]}
    data.write_text("".join(json.dumps(row) + "\n" for _ in range(5)), encoding="utf-8")
    config = make_config(tiny_base_dir)
    there = config.model_copy(
        update={"stages": (config.stages[0], config.stages[1].model_copy(update={"data": str(data)}))}
    )
    found = measure(there)
    assert list(found) == ["joint"]
    joint = plan_run(there, found).stages[1]
    assert joint.n_examples == 5
    assert joint.longest.prompt < 1024
    assert joint.step_tokens == 8 * (joint.longest.prompt + joint.longest.encoded)  # all rows are equally long


def test_a_model_that_is_not_there_yet(tiny_base_dir: Path) -> None:
    with pytest.raises(TrainingError, match="is not there yet"):
        plan_run(make_config(tiny_base_dir, model="runs/prepare/models/instruct"), {})


def test_both_forms_say_the_same(tiny_base_dir: Path) -> None:
    plan = plan_run(make_config(tiny_base_dir), {})
    tree = json.loads(json.dumps(to_json(plan)))
    assert [stage["key"] for stage in tree["stages"]] == ["compression", "joint"]
    assert tree["stages"][1]["memory"]["2"]["total"] == plan.stages[1].memory[2].total
    text = table(plan)
    assert "30 of 8 examples (2 workers x 2 accumulated x 2)" in text
    assert next(line for line in text.splitlines() if line.startswith("  ZeRO 2")).endswith("<-")
