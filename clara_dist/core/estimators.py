"""Estimators: how a loss on the documents that K slots read teaches the scores they were chosen by.

The choice itself has no gradient. An estimator puts a soft choice in its place, in the backward pass only:

    Z = Z_hard + (Z_soft - stopgrad(Z_soft)),    M_sel = Z M.

Z_hard[j] is the one-hot of slot j's document, so the forward value is that document's memory, bit for bit. The gradient
with respect to the scores s is that of Z_soft. With c_j[i] = <dL/dM_sel[j], M[i]>, u_j the softmax of s / tau over the
candidates that compete for slot j, and a constant a_j:

    Z_soft[j] = a_j u_j,    dL/ds = (1 / tau) * sum_j a_j u_j * (c_j - <u_j, c_j>).

So an estimator is u and a, an autograd function around them, and an oracle: its Z_soft written down plainly, which
shares no code with the function. The rest is common to all.

- ``sequential`` (arXiv 2511.18659): all documents that no earlier slot has taken compete; a_j = 1. A taken document is
  excluded exactly, with -inf. (The published code subtracts a finite 18.4 from its logit, so at tau 0.02 a score gap
  above 0.368 puts slot 2's weight, and its gradient, on the very document that slot 1 took.)
- ``leave_own_out``: all documents except slot j's own compete; a_j = 1 - softmax(s / tau)[own], the mass that is left.
  A selected document is judged by the other slots only, because the linear estimate of a slot has the wrong sign for
  the document that the slot itself reads.

The gradient with respect to M is Z_hard^T dL/dM_sel: only documents that were read get one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class SoftChoice(NamedTuple):
    """The backward's choice.

    Attributes:
        share_BKN: u_j; each row sums to 1, and is exactly 0 where a candidate does not compete.
        scale_BK1: a_j.
    """

    share_BKN: Tensor
    scale_BK1: Tensor


# --- sequential -------------------------------------------------------------------------------------------------------


def _sequential(logits_BN: Tensor, indices_BK: Tensor) -> SoftChoice:
    held_BKN = _held(indices_BK, logits_BN.shape[1])
    taken_BKN = held_BKN.cumsum(1) > held_BKN.long()
    share_BKN = torch.softmax(logits_BN[:, None].masked_fill(taken_BKN, -torch.inf), -1)
    return SoftChoice(share_BKN, torch.ones_like(share_BKN[..., :1]))


class SequentialSelect(torch.autograd.Function):
    """``(scores_BN, memory_BNX, indices_BK, mask_BN | None, temperature) -> memory_BKX``; scores in fp32 or wider."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        return _gather(ctx, *inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BKX: Tensor) -> tuple[Tensor | None, ...]:
        return _contract(ctx, grad_BKX, _sequential)


def sequential_soft(logits_BN: Tensor, hard_BKN: Tensor) -> Tensor:
    """The oracle, ``[B, K, N]``: each slot a softmax over what is left."""
    slots = []
    for hard_BN in hard_BKN.unbind(1):
        slots.append(torch.softmax(logits_BN, -1))
        logits_BN = logits_BN.masked_fill(hard_BN.bool(), -torch.inf)
    return torch.stack(slots, 1)


# --- leave own out ----------------------------------------------------------------------------------------------------


def _leave_own_out(logits_BN: Tensor, indices_BK: Tensor) -> SoftChoice:
    own_BKN = _held(indices_BK, logits_BN.shape[1])
    left_BK1 = torch.softmax(logits_BN, -1)[:, None].masked_fill(own_BKN, 0.0).sum(-1, keepdim=True)
    # The share comes from logits, not from p / |p|_1: where the own document holds all the mass that is 0 / 0.
    return SoftChoice(torch.softmax(logits_BN[:, None].masked_fill(own_BKN, -torch.inf), -1), left_BK1)


class LeaveOwnOutSelect(torch.autograd.Function):
    """As `SequentialSelect`, for at least two slots."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        return _gather(ctx, *inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BKX: Tensor) -> tuple[Tensor | None, ...]:
        return _contract(ctx, grad_BKX, _leave_own_out)


def leave_own_out_soft(logits_BN: Tensor, hard_BKN: Tensor) -> Tensor:
    """The oracle, ``[B, K, N]``: w_j = p (1 - Z_hard[j]), as stopgrad(|w_j|_1) w_j / |w_j|_1."""
    weight_BKN = torch.softmax(logits_BN, -1)[:, None] * (1 - hard_BKN)
    mass_BK1 = weight_BKN.sum(-1, keepdim=True)
    return mass_BK1.detach() * weight_BKN / mass_BK1.clamp(min=torch.finfo(weight_BKN.dtype).tiny)


# --- common to all ----------------------------------------------------------------------------------------------------


class EstimatorForms(NamedTuple):
    """The two forms of an estimator.

    Attributes:
        select: The autograd function that trains.
        soft: The oracle: ``(logits_BN, hard_BKN) -> Z_soft``, padding at -inf.
    """

    select: type[torch.autograd.Function]
    soft: Callable[[Tensor, Tensor], Tensor]


ESTIMATORS = {
    "sequential": EstimatorForms(SequentialSelect, sequential_soft),
    "leave_own_out": EstimatorForms(LeaveOwnOutSelect, leave_own_out_soft),
}


def at_least_fp32(x: Tensor) -> Tensor:
    """fp32, or wider if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _gather(
    ctx: Any, scores_BN: Tensor, memory_BNX: Tensor, indices_BK: Tensor, mask_BN: Tensor | None, temperature: float
) -> Tensor:
    ctx.save_for_backward(scores_BN, memory_BNX, indices_BK, mask_BN)
    ctx.temperature = temperature
    return memory_BNX[_rows(indices_BK), indices_BK]


def _contract(
    ctx: Any, grad_BKX: Tensor, soft_choice: Callable[[Tensor, Tensor], SoftChoice]
) -> tuple[Tensor | None, ...]:
    """The gradients of the module's docstring, for the inputs of `_gather`."""
    scores_BN, memory_BNX, indices_BK, mask_BN = ctx.saved_tensors
    grad_scores_BN = grad_memory_BNX = None
    if ctx.needs_input_grad[0]:
        logits_BN = scores_BN / ctx.temperature
        # In fp32 also under autocast: what counts is the difference of the c_j, which are close to each other.
        with torch.autocast(grad_BKX.device.type, enabled=False):
            gain_BKN = at_least_fp32(grad_BKX).flatten(2) @ at_least_fp32(memory_BNX).flatten(2).mT
        if mask_BN is not None:
            logits_BN = logits_BN.masked_fill(~mask_BN, -torch.inf)
            # Padding may hold anything, and 0 * inf would be NaN.
            gain_BKN = gain_BKN.masked_fill(~mask_BN[:, None], 0.0)
        share_BKN, scale_BK1 = soft_choice(logits_BN, indices_BK)
        centred_BKN = gain_BKN - (share_BKN * gain_BKN).sum(-1, keepdim=True)
        grad_scores_BN = ((scale_BK1 * share_BKN * centred_BKN).sum(1) / ctx.temperature).to(scores_BN.dtype)
    if ctx.needs_input_grad[1]:
        # A row's slots hold different documents, so plain assignment is the exact (and deterministic) Z_hard^T.
        grad_memory_BNX = torch.zeros_like(memory_BNX)
        grad_memory_BNX[_rows(indices_BK), indices_BK] = grad_BKX
    return grad_scores_BN, grad_memory_BNX, None, None, None


def _held(indices_BK: Tensor, n: int) -> Tensor:
    """Which document each slot holds, as bool ``[B, K, N]``."""
    return torch.nn.functional.one_hot(indices_BK, n).bool()


def _rows(indices_BK: Tensor) -> Tensor:
    return torch.arange(indices_BK.shape[0], device=indices_BK.device)[:, None]
