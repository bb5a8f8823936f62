"""The jobs of a pipeline must build on each other."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from clara_dist.config.pipeline import PipelineConfig


def tree() -> dict[str, Any]:
    stage = {"stage": "compression", "data": "c.jsonl", "steps": 1}
    joint = {"stage": "joint", "data": "j.jsonl", "steps": 1, "store": "run/store"}
    return {
        "run_dir": "run",
        "prepare": {"run_dir": "run/prepare", "model": {"base_model": "base"}, "stages": [stage]},
        "compress": {"corpus": ["corpus.jsonl"], "model": "run/m", "store": "run/store"},
        "joint": {"run_dir": "run/joint", "model": "run/m", "stages": [joint]},
        "evaluate": {"model": "run/j", "store": "run/store", "questions": "q.jsonl", "output": "run/report"},
    }


def test_jobs_that_fit() -> None:
    assert PipelineConfig.model_validate(tree()).report_dir == "run/report"


@pytest.mark.parametrize(
    ("job", "field", "value", "message"),
    [
        ("compress", "store", "elsewhere", "one store"),
        ("evaluate", "store", "elsewhere", "one store"),
        ("joint", "model", "run/other", "joint.model run/other must be compress.model run/m"),
        ("evaluate", "output", None, "evaluate needs output"),
    ],
)
def test_jobs_that_do_not_fit(job: str, field: str, value: str | None, message: str) -> None:
    changed = tree()
    changed[job][field] = value
    with pytest.raises(ValidationError, match=message):
        PipelineConfig.model_validate(changed)
