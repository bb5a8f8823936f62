"""The best checkpoint by an evaluation: kept, and the stage's model if that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from clara_dist.config import StageConfig
from clara_dist.training.loop import run


def adapters_of(model_dir: str) -> torch.Tensor:
    return torch.cat(
        [t.flatten() for _, t in sorted(load_file(f"{model_dir}/generator/adapter_model.safetensors").items())]
    )


def test_the_best_step_is_kept_and_becomes_the_model(make_config: Any, rows_path: str) -> None:
    # The loss falls from step to step, so the highest is that of the first checkpoint: a best that is not the last.
    fields = {"steps": 6, "checkpoint_every": 2, "keep_checkpoints": 1, "best_mode": "max"}
    fields |= {"evaluation": {"data": rows_path, "every": 2}}
    events: list[Any] = []
    best = make_config("best", **fields, load_best_at_end=True)
    output = run(best, on_progress=events.append)["compression"]
    losses = {event.step: event.metrics["loss"] for event in events if event.step is not None and event.kind == "eval"}
    assert sorted(losses) == [0, 2, 4, 6]
    assert losses[2] > losses[4] > losses[6]
    folder = Path(best.run_dir) / "compression" / "checkpoints"
    assert sorted(path.name for path in folder.glob("*.json")) == ["step-00000002.json", "step-00000004.json"]
    assert any(f"the best is step 2, eval/loss {losses[2]:.4g}" in event.text for event in events)

    short = run(make_config("short", **(fields | {"steps": 6, "load_best_at_end": False})))["compression"]
    assert not torch.equal(adapters_of(output), adapters_of(short))  # the last is another one
    saved = load_file(folder / "step-00000002.weights.safetensors")
    names = sorted(name for name in saved if "generator" in name)
    assert torch.equal(adapters_of(output), torch.cat([saved[name].flatten() for name in names]))


def test_the_last_step_can_be_the_best(make_config: Any, rows_path: str) -> None:
    fields = {"steps": 4, "checkpoint_every": 2, "evaluation": {"data": rows_path, "every": 2}}
    best = run(make_config("best", **fields, load_best_at_end=True))["compression"]
    last = run(make_config("last", **fields))["compression"]
    assert torch.equal(adapters_of(best), adapters_of(last))


@pytest.mark.parametrize("fields", [{}, {"evaluation": {"data": "x", "every": 3}, "checkpoint_every": 4}])
def test_a_best_that_could_not_be_known_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="load_best_at_end needs evaluation"):
        StageConfig.model_validate({"stage": "compression", "data": "x", "steps": 4, "load_best_at_end": True} | fields)
