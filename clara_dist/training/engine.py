"""What runs a step: the protocol between the training loop and its engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from clara_dist.config.model import Dtype
from clara_dist.config.training import EngineConfig, OptimizerConfig
from clara_dist.training.batches import Batch, Totals
from clara_dist.training.collectives import Group
from clara_dist.training.steps import StepOutput


@dataclass(frozen=True)
class Trainee:
    """What a stage trains.

    Attributes:
        step: Module from (batch, totals) to `StepOutput`.
        parameters: The trainable parameters by name; names are those of checkpoints.
        role_of: Role of a parameter, by name; gradient norms are logged per role.
        matrices: Names of hidden weight matrices (what Muon is for).
    """

    step: nn.Module
    parameters: Mapping[str, nn.Parameter]
    role_of: Callable[[str], str]
    matrices: frozenset[str] = frozenset()


@dataclass(frozen=True)
class LossScale:
    """Where the dynamic loss scaling of float16 is.

    Attributes:
        good_steps: Steps without overflow since the scale was changed.
    """

    scale: float
    good_steps: int


@dataclass(frozen=True)
class EngineState:
    """Everything an engine would need to go on, independent of engine, ZeRO stage and number of workers.

    Attributes:
        weights: fp32, on the CPU, by parameter name.
        optimizer: By parameter name, then by the optimiser's own name of the state (``exp_avg`` ..); ``step`` included;
            empty for a parameter while every step of float16 has overflowed.
        loss_scale: In float16 only.
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, dict[str, Tensor]]
    loss_scale: LossScale | None = None


class Engine(Protocol):
    """Forward, backward and update of one stage. Every method is collective: all workers call it, in the same order."""

    def accumulate(self, batch: Batch, totals: Totals, *, last: bool) -> StepOutput:
        """Add the gradient of a micro-batch; after the last one of a step, add up over all workers."""

    def evaluate(self, batch: Batch, totals: Totals) -> StepOutput:
        """The forward pass alone: no gradient, no dropout, and nothing that the next step would notice."""

    def gradient_norms(self) -> dict[str, float]:
        """L2 norm of the accumulated gradient per role, before clipping; between the last micro-batch and `update`."""

    def update(self, lr_factor: float) -> float:
        """Clip, step at ``lr_factor`` of the peak rates, forget the gradient; returns its norm before clipping.

        In float16 a norm that is not finite means that the step was skipped and the loss scale lowered.
        """

    def state(self) -> EngineState:
        """The whole state, gathered; complete on rank 0."""

    def load(self, state: EngineState) -> None:
        """Go on from ``state``. The module's weights must have been loaded before the engine was built."""

    def weights(self) -> dict[str, Tensor]:
        """The trained weights, whole, fp32 and on the CPU on rank 0, in the precision that they are trained in."""


def build_engine(
    trainee: Trainee, config: EngineConfig, optimizer: OptimizerConfig, accumulation: int, group: Group
) -> Engine:
    """The engine that the configuration names; DeepSpeed is imported only if it is asked for."""
    if config.kind == "torch":
        from clara_dist.training.torch_engine import TorchEngine

        return TorchEngine(trainee, config, optimizer, group)
    from clara_dist.training.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(trainee, config, optimizer, accumulation, group)


def half_precision(device: torch.device, dtype: Dtype) -> torch.autocast:
    """Autocast to a 16-bit type; in float32 it does nothing. Trained weights stay float32 beside it."""
    return torch.autocast(device.type, getattr(torch, dtype), enabled=dtype != "float32")


def role_norms(trainee: Trainee, gradients: Mapping[str, Tensor | None]) -> dict[str, float]:
    """L2 norm per role of gradients by parameter name; 0 for a role that no gradient has reached."""
    squares: dict[str, Tensor | float] = {trainee.role_of(name): 0.0 for name in trainee.parameters}
    for name, gradient in gradients.items():
        if gradient is not None:
            squares[trainee.role_of(name)] += gradient.float().square().sum()
    return {role: float(square) ** 0.5 for role, square in squares.items()}
