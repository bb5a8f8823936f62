"""A run's data is checked in the driver: nothing is started for a bad row, and nothing is claimed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clara_dist.config import ClaraConfig, StageConfig, TrainConfig
from clara_dist.distributed import train_job
from clara_dist.errors import DataError


@pytest.mark.parametrize(
    ("answers", "message"),
    [([""], r"line 2: answers\[0\] is empty"), (["word " * 2000], "1 of 2 answers of .* would be cut")],
)
def test_bad_data_is_told_before_anything_starts(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch, answers: list[str], message: str
) -> None:
    good: dict[str, Any] = {"data_type": "answer", "question": ["q"], "answers": ["a"], "docs": ["text"]}
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps(good) + "\n" + json.dumps({**good, "answers": answers}) + "\n")
    model = ClaraConfig(base_model=str(tiny_base_dir), n_memory_tokens=2, doc_max_tokens=16)
    stage = StageConfig(stage="compression", data=str(data), steps=1, batch_size=1)
    config = TrainConfig(run_dir=str(tmp_path / "run"), model=model, stages=(stage,))
    events: list[Any] = []
    # Another test's Ray may be there; this run must not even look for one.
    monkeypatch.setattr(train_job, "connect", lambda *args, **kwargs: pytest.fail("a cluster was asked for"))
    with pytest.raises(DataError, match=message):
        train_job.train(config, on_progress=events.append)
    assert not events
    assert not (tmp_path / "run" / "run.yaml").exists()
