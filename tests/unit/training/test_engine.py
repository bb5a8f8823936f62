from __future__ import annotations

import torch
from torch import nn

from clara_dist.training.engine import Trainee, role_norms


def test_a_role_that_no_gradient_reaches_has_norm_zero() -> None:
    """Left out instead, it would never be reported as dead."""
    parameters = {name: nn.Parameter(torch.zeros(2)) for name in ("generator.a", "generator.b", "query_reasoner.a")}
    trainee = Trainee(nn.Module(), parameters, lambda name: name.split(".")[0])
    gradients = {
        "generator.a": torch.tensor([1.0, 2.0]),
        "generator.b": torch.tensor([0.0, 2.0]),
        "query_reasoner.a": None,
    }
    assert role_norms(trainee, gradients) == {"generator": 3.0, "query_reasoner": 0.0}
