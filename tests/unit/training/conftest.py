"""Tiny rows for every stage, and a configuration on the tiny base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from clara_dist.config import ClaraConfig, EngineConfig, LoraSettings, StageConfig, TrainConfig
from clara_dist.data.documents import content_id
from clara_dist.model import ClaraModel, TextBatch
from clara_dist.store import Fingerprint, StoreSchema, commit, write_shard

PLACES = ("lighthouse", "island", "harbour", "station", "chapel", "bridge", "mill", "well")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def question_of(place: str) -> str:
    return f"When was the {place} built?"


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


@pytest.fixture
def joint_rows_path(tmp_path: Path, passages: list[str]) -> str:
    """Questions with three or four of the passages as candidates; the answer is in a known one."""
    rows = []
    for i, place in enumerate(PLACES):
        docs = [passages[(i + j) % len(passages)] for j in range(3 + i % 2)]
        rows.append({"question": question_of(place), "docs": docs, "gold_answer": f"18{10 + i}", "pos_index": [0]})
    return write_rows(tmp_path / "joint.jsonl", rows)


@pytest.fixture
def tiny_store(tmp_path: Path, tiny_clara_dir: Path, passages: list[str]) -> str:
    """The passages, compressed by the tiny model one by one; ``row`` is a typed metadata column."""
    clara = ClaraModel.from_pretrained(tiny_clara_dir)
    encoded = [clara.tokenizer.encode_text(text) for text in passages]
    with torch.no_grad():
        memory = [
            clara.encode("compressor", TextBatch.from_ids([e.ids], clara.tokenizer.pad_id)).memory_BMD for e in encoded
        ]
    memory_SMD = torch.cat(memory).to(torch.float16).numpy()
    schema = StoreSchema(*memory_SMD.shape[1:], {"parity": "string"})
    n = len(passages)
    table = schema.to_table(
        doc_ids=[content_id(text) for text in passages],
        titles=[""] * n,
        texts=passages,
        metadata=[{"parity": "odd" if i % 2 else "even"} for i in range(n)],
        memory_SMD=memory_SMD,
        n_tokens=[e.n_tokens for e in encoded],
        truncated=[False] * n,
    )
    path = tmp_path / "store"
    commit(path, schema, Fingerprint(clara.fingerprint_fields()), [write_shard(path, table, "unit-0")])
    return str(path)


@pytest.fixture
def make_joint_config(make_config: Any, tiny_clara_dir: Path, tiny_store: str, joint_rows_path: str) -> Any:
    """As ``make_config``, for a joint stage from the tiny model and its store."""

    def make(run: str, **fields: Any) -> TrainConfig:
        joint = {"stage": "joint", "data": joint_rows_path, "store": tiny_store} | fields
        return make_config(run, **joint).model_copy(update={"model": str(tiny_clara_dir)})

    return make
