"""Which failures of a run's workers are worth another start."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from clara_dist.config import ClaraConfig, StageConfig, TrainConfig
from clara_dist.distributed import train_job
from clara_dist.errors import (
    ClaraError,
    ClusterError,
    CorruptStoreError,
    EchoedError,
    StorageError,
    StoreError,
    TrainingError,
)

OUTPUTS = {"compression": "model"}


class WorkersFailed(Exception):
    """As Ray Train's error has it: the errors by rank."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__("the workers failed")
        self.worker_failures = dict(enumerate(errors))


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_base_dir: Path) -> Any:
    """Trains with workers that end as it is told, start by start."""
    monkeypatch.setattr(train_job, "connect", lambda *args, **kwargs: nullcontext())
    for name in ("prepare_run", "require_visible", "require_room"):
        monkeypatch.setattr(train_job, name, lambda *args, **kwargs: None)

    def start(*outcomes: Any) -> tuple[dict[str, str], int]:
        left = list(outcomes)
        monkeypatch.setattr(train_job, "_attempt", lambda config, report: left.pop(0))
        stage = StageConfig(stage="compression", data="rows.jsonl", steps=1, batch_size=1)
        model = ClaraConfig(base_model=str(tiny_base_dir), n_memory_tokens=2, doc_max_tokens=16)
        config = TrainConfig(run_dir=str(tmp_path / "run"), model=model, stages=(stage,), use_gpu=False, max_failures=1)
        return train_job.train(config, resume=True, on_progress=lambda event: None), len(left)

    return start


@pytest.mark.parametrize("error", [StorageError("no answer"), ClusterError("an actor is lost"), OSError("killed")])
def test_what_may_pass_is_tried_again(start: Any, error: Exception) -> None:
    assert start(WorkersFailed(error), OUTPUTS) == (OUTPUTS, 0)


@pytest.mark.parametrize("error", [StoreError("no column"), CorruptStoreError("flipped"), TrainingError("not finite")])
def test_what_is_there_to_stay_is_not(start: Any, error: ClaraError) -> None:
    with pytest.raises(type(error), match=error.what):
        start(WorkersFailed(error), OUTPUTS)


def test_the_last_attempts_own_error_is_raised(start: Any) -> None:
    with pytest.raises(StorageError, match="second"):
        start(WorkersFailed(StorageError("first")), WorkersFailed(StorageError("second")))


def test_a_worker_that_only_ends_with_another_does_not_speak_for_it(start: Any) -> None:
    with pytest.raises(TrainingError, match="the true one"):
        start(WorkersFailed(EchoedError("another worker"), TrainingError("the true one")))
    assert start(WorkersFailed(EchoedError("another worker"), StorageError("no answer")), OUTPUTS) == (OUTPUTS, 0)
    assert start(WorkersFailed(EchoedError("another worker")), OUTPUTS) == (OUTPUTS, 0)
