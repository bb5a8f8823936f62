"""The torch engine on a module whose gradients are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clara_dist.config import EngineConfig, OptimizerConfig
from clara_dist.errors import TrainingError
from clara_dist.training.collectives import Group
from clara_dist.training.engine import Trainee
from clara_dist.training.steps import StepOutput
from clara_dist.training.torch_engine import TorchEngine

HERE = Group(0, 1, torch.device("cpu"))
NOTHING: Any = None  # the module below reads neither batch nor totals


class Twice(nn.Module):
    """Loss 2a + 3b: the gradient is (2, 3), and in float16 2 x the loss scale must stay below 65,504."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(1, 1, bias=False)
        self.b = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.a.weight)
        nn.init.ones_(self.b.weight)

    def forward(self, batch: Any, totals: Any) -> StepOutput:
        loss: Tensor = self.a(torch.full((1, 1), 2.0)) + self.b(torch.full((1, 1), 3.0))
        return StepOutput(loss.sum(), {}, [])


def engine_of(dtype: str, **optimizer: Any) -> tuple[TorchEngine, Twice]:
    step: Any = Twice()
    trainee = Trainee(step, dict(step.named_parameters()), lambda name: name[0])
    config = OptimizerConfig.model_validate({"lr": 0.1, "clip_norm": 1e9} | optimizer)
    return TorchEngine(trainee, EngineConfig.model_validate({"kind": "torch", "dtype": dtype}), config, HERE), step


def test_float16_lowers_the_loss_scale_until_a_step_fits_and_goes_on_there_after_a_checkpoint() -> None:
    engine, step = engine_of("float16")
    norms = []
    for _ in range(3):
        engine.accumulate(NOTHING, NOTHING, last=True)
        norms.append(engine.update(1.0))
        if len(norms) == 2:
            assert step.a.weight.item() == 1.0
    # 3 x 65,536 and 3 x 32,768 overflow; 3 x 16,384 does not. Norms are those of the unscaled gradient.
    assert norms == [float("inf"), float("inf"), pytest.approx(13**0.5, rel=1e-3)]
    assert step.a.weight.item() == pytest.approx(0.9)

    state = engine.state()
    assert state.loss_scale is not None
    assert (state.loss_scale.scale, state.loss_scale.good_steps) == (16384.0, 1)
    resumed, _ = engine_of("float16")
    resumed.load(state)
    assert resumed.state().loss_scale == state.loss_scale


def test_a_role_has_its_own_learning_rate() -> None:
    engine, step = engine_of("float32", lr_by_role={"b": 0.01})
    engine.accumulate(NOTHING, NOTHING, last=True)
    engine.update(0.5)
    # AdamW's first step is the learning rate, whatever the gradient.
    assert (1 - step.a.weight.item(), 1 - step.b.weight.item()) == (pytest.approx(0.05), pytest.approx(0.005))


def test_a_learning_rate_for_what_is_not_trained_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"does not train(.|\n)*compressor(.|\n)*some of \['a', 'b'\]"):
        engine_of("float32", lr_by_role={"compressor": 0.01})
