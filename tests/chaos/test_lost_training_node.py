"""Elastic training: a node leaves, and the run goes on with the workers that are left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from clara_dist.config import ClaraConfig, TrainConfig
from clara_dist.distributed import train_job
from clara_dist.training.loop import run
from clara_dist.training.progress import Progress


def make_config(tmp_path: Path, base_dir: Path, name: str, workers: str) -> TrainConfig:
    data = tmp_path / "rows.jsonl"
    rows = [
        {"data_type": "answer", "question": f"When? {i}", "answers": f"18{i}0", "docs": f"18{i}0."} for i in range(8)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    stage = {"stage": "compression", "data": str(data), "steps": 40, "batch_size": 4, "optimizer": {"lr": 1e-3}}
    model = ClaraConfig.model_validate(
        {"base_model": str(base_dir), "n_memory_tokens": 3, "doc_max_tokens": 24, "lora": {"r": 2, "dropout": 0.0}}
    )
    fields: dict[str, Any] = {"run_dir": str(tmp_path / name), "model": model, "workers": workers}
    fields |= {"stages": [stage | {"checkpoint_every": 2, "log_every": 1}], "engine": {"zero_stage": 2}}
    return TrainConfig.model_validate(fields | {"use_gpu": False, "tracker": "none"})


def test_a_run_goes_on_with_one_worker_when_the_node_of_the_other_is_lost(
    nodes: Any, tmp_path: Path, tiny_base_dir: Path
) -> None:
    texts: list[str] = []
    steps: list[int] = []

    def lose_a_node_once(event: Progress) -> None:
        texts.append(event.text)
        if event.step is not None:
            steps.append(event.step)
            if event.step >= 5 and len(nodes.workers) == 2:
                nodes.kill_oldest()

    config = make_config(tmp_path, tiny_base_dir, "elastic", "1:2")
    outputs = train_job.train(config, address=nodes.address, on_progress=lose_a_node_once)
    text = "\n".join(texts)
    assert "2 training workers at work" in text
    assert "1 training worker at work" in text[text.index("a worker failed") :]
    assert steps[-1] == 40

    alone = run(make_config(tmp_path, tiny_base_dir, "alone", "1"))
    expected, got = (
        load_file(Path(model["compression"]) / "generator" / "adapter_model.safetensors") for model in (alone, outputs)
    )
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-5, atol=1e-6)
