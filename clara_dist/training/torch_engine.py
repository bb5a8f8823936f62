"""Plain data-parallel PyTorch: no DeepSpeed, any optimiser, float32 or 16-bit autocast, on GPUs and CPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from clara_dist.config.training import EngineConfig, OptimizerConfig
from clara_dist.training.batches import Batch, Totals
from clara_dist.training.collectives import Group
from clara_dist.training.engine import EngineState, LossScale, Trainee, half_precision, role_norms
from clara_dist.training.optimizer import build_optimizers
from clara_dist.training.steps import StepOutput


class TorchEngine:
    """One copy of the trainable weights per worker; gradients are added up in one message per step.

    Trainable weights and optimiser state are float32 whatever the engine's dtype. In float16 the loss is scaled by
    torch's `GradScaler`; it is scaled back when the gradient is complete, so norms and clipping are those of the loss.
    """

    def __init__(self, trainee: Trainee, config: EngineConfig, optimizer: OptimizerConfig, group: Group) -> None:
        self._trainee = trainee
        self._group = group
        self._clip_norm = optimizer.clip_norm
        self._autocast = half_precision(group.device, config.dtype)
        self._scaler = torch.amp.GradScaler(group.device.type, enabled=config.dtype == "float16")
        for parameter in trainee.parameters.values():
            parameter.data = parameter.data.float()
        self._optimizers = build_optimizers(trainee.parameters, optimizer, trainee.matrices, trainee.role_of)
        self._peak_lrs = [(group, group["lr"]) for opt in self._optimizers for group in opt.param_groups]

    def accumulate(self, batch: Batch, totals: Totals, *, last: bool) -> StepOutput:
        with self._autocast:
            output: StepOutput = self._trainee.step(batch, totals)
        self._scaler.scale(output.loss).backward()
        if last:
            for parameter in self._trainee.parameters.values():
                # A weight that this worker's share did not touch still takes part in the sum.
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            self._group.add_gradients(list(self._gradients().values()))
            for optimizer in self._optimizers:
                self._scaler.unscale_(optimizer)
        return output

    def evaluate(self, batch: Batch, totals: Totals) -> StepOutput:
        step = self._trainee.step.eval()
        try:
            with torch.no_grad(), self._autocast:
                output: StepOutput = step(batch, totals)
        finally:
            step.train()
        return output

    def gradient_norms(self) -> dict[str, float]:
        return role_norms(self._trainee, self._gradients())

    def update(self, lr_factor: float) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self._trainee.parameters.values(), self._clip_norm)
        for group, peak_lr in self._peak_lrs:
            group["lr"] = peak_lr * lr_factor
        for optimizer in self._optimizers:
            self._scaler.step(optimizer)
            optimizer.zero_grad()
        self._scaler.update()
        return float(norm)

    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach().to("cpu", copy=True) for name, p in self._trainee.parameters.items()}

    def state(self) -> EngineState:
        states = {
            name: {key: value.cpu().clone() for key, value in self._state_of(p).items()}
            for name, p in self._trainee.parameters.items()
        }
        scaler = self._scaler.state_dict()
        loss_scale = LossScale(scaler["scale"], scaler["_growth_tracker"]) if scaler else None
        return EngineState(self.weights(), states, loss_scale)

    def load(self, state: EngineState) -> None:
        for optimizer in self._optimizers:
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                name = self._names[parameter]
                optimizer.state[parameter] = {
                    # AdamW keeps its step counter on the CPU.
                    key: value.clone() if key == "step" else value.to(parameter.device, copy=True)
                    for key, value in state.optimizer.get(name, {}).items()
                }
        if state.loss_scale is not None and self._scaler.is_enabled():
            good_steps = {"_growth_tracker": state.loss_scale.good_steps}
            self._scaler.load_state_dict(self._scaler.state_dict() | {"scale": state.loss_scale.scale} | good_steps)

    @property
    def _names(self) -> dict[torch.nn.Parameter, str]:
        return {parameter: name for name, parameter in self._trainee.parameters.items()}

    def _gradients(self) -> dict[str, Tensor]:
        return {name: p.grad for name, p in self._trainee.parameters.items() if p.grad is not None}

    def _state_of(self, parameter: torch.nn.Parameter) -> dict[str, Tensor]:
        return next((opt.state[parameter] for opt in self._optimizers if parameter in opt.state), {})
