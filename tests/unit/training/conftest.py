"""Tiny rows for every stage, and a configuration on the tiny base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clara_dist.config import ClaraConfig, EngineConfig, LoraSettings, StageConfig, TrainConfig

PLACES = ("lighthouse", "island", "harbour", "station", "chapel", "bridge", "mill", "well")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def passages() -> list[str]:
    return [f"The {place} was built in 18{10 + i}." for i, place in enumerate(PLACES)]


@pytest.fixture
def rows_path(tmp_path: Path, passages: list[str]) -> str:
    """Question-answer rows with one or two documents of different lengths; documents repeat."""
    rows = []
    for i, place in enumerate(PLACES):
        docs = [passages[i]] if i % 3 else [passages[i], passages[0]]
        rows.append(
            {
                "data_type": "answer",
                "question": [f"When was the {place} built?"],
                "answers": [f"18{10 + i}"],
                "docs": docs,
            }
        )
    return write_rows(tmp_path / "rows.jsonl", rows)


@pytest.fixture
def make_config(tmp_path: Path, rows_path: str, tiny_base_dir: Path) -> Any:
    """A factory: ``make_config("run", stage="compression", workers=1, engine={...}, **stage fields)``."""

    def make(run: str, *, workers: int = 1, engine: dict[str, Any] | None = None, **stage: Any) -> TrainConfig:
        fields = {"stage": "compression", "data": rows_path, "steps": 4, "batch_size": 4, "checkpoint_every": 100}
        fields |= {"log_every": 1, "optimizer": {"lr": 1e-2}} | stage
        return TrainConfig(
            run_dir=str(tmp_path / run),
            model=ClaraConfig(
                base_model=str(tiny_base_dir), n_memory_tokens=3, doc_max_tokens=24, lora=LoraSettings(r=2, dropout=0.1)
            ),
            stages=(StageConfig.model_validate(fields),),
            engine=EngineConfig.model_validate({"kind": "torch"} | (engine or {})),
            workers=workers,
            tracker="none",
        )

    return make
