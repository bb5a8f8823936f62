"""Optimisers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from clara_dist.config.training import OptimizerConfig
from clara_dist.errors import TrainingError


def build_optimizers(
    parameters: Mapping[str, nn.Parameter],
    config: OptimizerConfig,
    matrices: Collection[str] = (),
    role_of: Callable[[str], str] = lambda name: "",
    adamw: Callable[..., Optimizer] = torch.optim.AdamW,
) -> list[Optimizer]:
    """AdamW on everything, or Muon on ``matrices`` and AdamW on the rest.

    Args:
        parameters: What is trained, by name.
        config: Kind, peak rates, betas and weight decay.
        matrices: Names of the hidden weight matrices: no embedding, no head, nothing one-dimensional.
        role_of: Role of a parameter, by name, for ``lr_by_role``: a parameter group for each learning rate.
        adamw: Another implementation of torch's AdamW.

    Raises:
        TrainingError: A learning rate is set for a role that is not trained.
    """
    if config.name == "adamw":
        groups = _by_rate(parameters, config, role_of)
        return [adamw(groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)]
    hidden = [parameter for name, parameter in parameters.items() if name in matrices]
    rest = [parameter for name, parameter in parameters.items() if name not in matrices]
    # match_rms_adamw scales an update to the size of AdamW's, so that learning rates of the two are comparable.
    muon = torch.optim.Muon(hidden, config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
    return [muon, adamw(rest, lr=config.adamw_lr, betas=config.betas, weight_decay=config.weight_decay)]


def _by_rate(
    parameters: Mapping[str, nn.Parameter], config: OptimizerConfig, role_of: Callable[[str], str]
) -> list[dict[str, Any]]:
    """Parameter groups by peak learning rate."""
    roles = {role_of(name) for name in parameters}
    unknown = config.lr_by_role.keys() - roles
    if unknown:
        raise TrainingError(
            "lr_by_role names what this stage does not train", got=sorted(unknown), expected=f"some of {sorted(roles)}"
        )
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(config.lr_by_role.get(role_of(name), config.lr), []).append(parameter)
    return [{"params": members, "lr": rate} for rate, members in groups.items()]


def lr_factor(config: OptimizerConfig, step: int, n_steps: int) -> float:
    """Share of the peak learning rate at ``step`` (0-based): linear warm-up, then the schedule down to its minimum.

    A pure function of the step, so that resuming needs no scheduler state.
    """
    warmup = config.n_warmup(n_steps)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, n_steps - warmup)
    left = 1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.min_lr_ratio + (1.0 - config.min_lr_ratio) * left
