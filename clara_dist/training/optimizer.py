"""Optimisers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import nn
from torch.optim import Optimizer

from clara_dist.config.training import OptimizerConfig


def build_optimizers(
    parameters: Mapping[str, nn.Parameter], config: OptimizerConfig, matrices: Collection[str] = ()
) -> list[Optimizer]:
    """AdamW on everything, or Muon on ``matrices`` and AdamW on the rest.

    Args:
        parameters: What is trained, by name.
        config: Kind, peak rates, betas and weight decay.
        matrices: Names of the hidden weight matrices: no embedding, no head, nothing one-dimensional.
    """
    if config.name == "adamw":
        return [torch.optim.AdamW(parameters.values(), config.lr, betas=config.betas, weight_decay=config.weight_decay)]
    hidden = [parameter for name, parameter in parameters.items() if name in matrices]
    rest = [parameter for name, parameter in parameters.items() if name not in matrices]
    # match_rms_adamw scales an update to the size of AdamW's, so that learning rates of the two are comparable.
    muon = torch.optim.Muon(hidden, config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, config.adamw_lr, betas=config.betas, weight_decay=config.weight_decay)
    return [muon, adamw]


def lr_factor(config: OptimizerConfig, step: int, n_steps: int) -> float:
    """Share of the peak learning rate at ``step`` (0-based): linear warm-up, then the schedule down to 0.

    A pure function of the step, so that resuming needs no scheduler state.
    """
    warmup = round(config.warmup_ratio * n_steps)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, n_steps - warmup)
    if config.schedule == "linear":
        return 1.0 - progress
    return 0.5 * (1.0 + math.cos(math.pi * progress))
