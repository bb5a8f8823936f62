"""Plain data-parallel PyTorch: no DeepSpeed, any optimiser, float32 or bfloat16 autocast."""

from __future__ import annotations

import torch
from torch import Tensor

from clara_dist.config.training import EngineConfig, OptimizerConfig
from clara_dist.errors import TrainingError
from clara_dist.training.batches import Batch, Totals
from clara_dist.training.collectives import Group
from clara_dist.training.engine import EngineState, Trainee, role_norms
from clara_dist.training.optimizer import build_optimizers
from clara_dist.training.steps import StepOutput


class TorchEngine:
    """One copy of the trainable weights per worker; gradients are added up in one message per step.

    Trainable weights and optimiser state are float32 whatever the engine's dtype.
    """

    def __init__(self, trainee: Trainee, config: EngineConfig, optimizer: OptimizerConfig, group: Group) -> None:
        if config.dtype == "float16":
            raise TrainingError("float16 needs loss scaling", hint="use bfloat16, or engine.kind = deepspeed")
        self._trainee = trainee
        self._group = group
        self._clip_norm = optimizer.clip_norm
        self._half = config.dtype == "bfloat16"
        for parameter in trainee.parameters.values():
            parameter.data = parameter.data.float()
        self._optimizers = build_optimizers(trainee.parameters, optimizer, trainee.matrices)
        self._peak_lrs = [opt.param_groups[0]["lr"] for opt in self._optimizers]

    def accumulate(self, batch: Batch, totals: Totals, *, last: bool) -> StepOutput:
        with torch.autocast(self._group.device.type, torch.bfloat16, enabled=self._half):
            output: StepOutput = self._trainee.step(batch, totals)
        output.loss.backward()
        if last:
            for parameter in self._trainee.parameters.values():
                # A weight that this worker's share did not touch still takes part in the sum.
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            self._group.add_gradients(list(self._gradients().values()))
        return output

    def gradient_norms(self) -> dict[str, float]:
        return role_norms(self._trainee, self._gradients())

    def update(self, lr_factor: float) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self._trainee.parameters.values(), self._clip_norm)
        for optimizer, peak_lr in zip(self._optimizers, self._peak_lrs, strict=True):
            optimizer.param_groups[0]["lr"] = peak_lr * lr_factor
            optimizer.step()
            optimizer.zero_grad()
        return float(norm)

    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach().to("cpu", copy=True) for name, p in self._trainee.parameters.items()}

    def state(self) -> EngineState:
        states = {
            name: {key: value.cpu().clone() for key, value in self._state_of(p).items()}
            for name, p in self._trainee.parameters.items()
        }
        return EngineState(self.weights(), states)

    def load(self, state: EngineState) -> None:
        for optimizer in self._optimizers:
            for parameter in optimizer.param_groups[0]["params"]:
                name = self._names[parameter]
                optimizer.state[parameter] = {
                    # AdamW keeps its step counter on the CPU.
                    key: value.clone() if key == "step" else value.to(parameter.device, copy=True)
                    for key, value in state.optimizer[name].items()
                }

    @property
    def _names(self) -> dict[torch.nn.Parameter, str]:
        return {parameter: name for name, parameter in self._trainee.parameters.items()}

    def _gradients(self) -> dict[str, Tensor]:
        return {name: p.grad for name, p in self._trainee.parameters.items() if p.grad is not None}

    def _state_of(self, parameter: torch.nn.Parameter) -> dict[str, Tensor]:
        return next(opt.state[parameter] for opt in self._optimizers if parameter in opt.state)
