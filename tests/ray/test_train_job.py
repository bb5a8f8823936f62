"""Training through Ray Train: two workers, DeepSpeed, a worker that is killed, an error that must not be retried."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clara_dist.config import ClaraConfig, EngineConfig, LoraSettings, StageConfig, TrainConfig
from clara_dist.distributed import train_job
from clara_dist.errors import DataError


def make_config(tmp_path: Path, base_dir: Path, rows: list[dict[str, Any]], **fields: Any) -> TrainConfig:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    stage = {"stage": "compression", "data": str(data), "steps": 6, "batch_size": 4, "checkpoint_every": 2}
    model = ClaraConfig(base_model=str(base_dir), n_memory_tokens=3, doc_max_tokens=24, lora=LoraSettings(r=2))
    return TrainConfig(
        run_dir=str(tmp_path / "run"),
        model=model,
        stages=(StageConfig.model_validate(stage | {"log_every": 1, "optimizer": {"lr": 1e-2}}),),
        engine=EngineConfig(kind="deepspeed"),
        workers=2,
        use_gpu=False,
        tracker="none",
        **fields,
    )


ROWS = [
    {"data_type": "answer", "question": [f"When was mill {i} built?"], "answers": [f"18{i}0"], "docs": [f"Mill {i}: 18{i}0."]}
    for i in range(8)
]


def test_two_workers_train_and_report(local_ray: None, tmp_path: Path, tiny_base_dir: Path) -> None:
    events: list[Any] = []
    outputs = train_job.train(make_config(tmp_path, tiny_base_dir, ROWS), on_progress=events.append)
    for e in events: print(e.text)
    assert (Path(outputs["compression"]) / "config.json").is_file()
    assert [event.step for event in events if event.step] == [1, 2, 3, 4, 5, 6]
