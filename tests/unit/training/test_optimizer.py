from __future__ import annotations

import pytest
import torch
from torch import nn

from clara_dist.config import OptimizerConfig
from clara_dist.training.optimizer import build_optimizers, lr_factor


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", [0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_warm_up_then_schedule(schedule: str, expected: list[float]) -> None:
    config = OptimizerConfig.model_validate({"schedule": schedule, "warmup_ratio": 1 / 3})
    assert [lr_factor(config, step, 6) for step in range(6)] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", [0.5, 1.0, 1.0, 0.868198, 0.55, 0.231802]),
        ("linear", [0.5, 1.0, 1.0, 0.775, 0.55, 0.325]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_a_warm_up_in_steps_and_a_least_rate(schedule: str, expected: list[float]) -> None:
    config = OptimizerConfig.model_validate({"schedule": schedule, "warmup_steps": 2, "min_lr_ratio": 0.1})
    assert [lr_factor(config, step, 6) for step in range(6)] == pytest.approx(expected, abs=1e-6)


def test_no_warm_up_starts_at_the_peak() -> None:
    assert lr_factor(OptimizerConfig(warmup_ratio=0.0), 0, 10) == 1.0


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest() -> None:
    parameters = {
        "w": nn.Parameter(torch.eye(3)),
        "embedding": nn.Parameter(torch.eye(3)),
        "norm": nn.Parameter(torch.ones(3)),
    }
    config = OptimizerConfig(name="muon", lr=0.1, adamw_lr=0.01)
    muon, adamw = build_optimizers(parameters, config, matrices={"w"})
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    muon.step()
    adamw.step()
    # AdamW's first step is lr in every entry. Muon's update is orthogonalised: of the rank-1 gradient only direction
    # (1, 1, 1) / sqrt(3) is left, so all entries move alike, and its RMS is brought to 0.2 lr sqrt(max(3, 3)).
    torch.testing.assert_close(parameters["norm"].detach(), torch.full((3,), 0.99))
    moved = (torch.eye(3) - parameters["w"].detach()).flatten()
    assert float(moved.std()) < 1e-3
    assert 0.5 < float(moved.mean()) / (0.2 * 0.1 * 3**0.5 / 3) < 1.5
