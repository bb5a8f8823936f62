"""Straight-through top-k: the hard choice forward, the gradient of a soft one backward.

For scores s over N candidates, temperature tau and K slots, slot j holds the document of the j-th highest score:

    Z = Z_hard + (Z_soft - stopgrad(Z_soft)),    M_sel = Z M.

Z_hard[j] is the one-hot of that document, so the forward value is the document's memory, bit for bit. The gradient with
respect to s is that of Z_soft. With c_j[i] = <dL/dM_sel[j], M[i]>, u_j the softmax of s / tau over the candidates that
compete for slot j, and a constant scale a_j:

    Z_soft[j] = a_j u_j,    dL/ds = (1 / tau) * sum_j a_j u_j * (c_j - <u_j, c_j>).

The estimators differ in who competes:

- ``sequential`` (arXiv 2511.18659): all documents that no earlier slot has taken; a_j = 1. A taken document is excluded
  exactly, with -inf. (The published code subtracts a finite 18.4 from its logit, so at tau 0.02 a score gap above
  0.368 puts slot 2's weight, and its gradient, on the very document that slot 1 took.)
- ``leave_own_out``: all documents except slot j's own; a_j = 1 - softmax(s / tau)[own], the mass that is left, held
  constant. A selected document is judged by the other slots only, because the linear estimate of a slot has the wrong
  sign for the document that the slot itself reads. With a single slot nobody is left to judge it, so K = 1 is the
  plain form, which is ``sequential``.

The gradient with respect to M is Z_hard^T dL/dM_sel: only documents that were read get one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clara_dist.errors import SelectionError

Estimator = Literal["sequential", "leave_own_out"]


@dataclass(frozen=True)
class Selection:
    """What the K slots hold.

    Attributes:
        memory_BKX: Memories of the chosen documents, best first, in the dtype and trailing shape of the candidates'.
        indices_BK: int64 positions of the chosen documents among the candidates.
    """

    memory_BKX: Tensor
    indices_BK: Tensor


def top_k(scores_BN: Tensor, k: int, mask_BN: Tensor | None = None) -> Tensor:
    """The k best candidates of each row, best first; of equal scores the lower index comes first.

    Args:
        scores_BN: Scores; what stands at padded positions does not matter, not even NaN.
        k: Number of slots, at least 1.
        mask_BN: bool, True = a real candidate; None = all are real.

    Returns:
        indices_BK, int64, without gradient.

    Raises:
        SelectionError: Shapes do not fit, a row has fewer than k real candidates, or a real score is not finite.
    """
    scores_BN = _checked_scores(scores_BN, k, mask_BN)
    # torch.topk leaves the order of ties to the device; a stable sort of N candidates costs next to nothing.
    return torch.sort(scores_BN, dim=-1, descending=True, stable=True).indices[:, :k].contiguous()


def straight_through_select(
    scores_BN: Tensor,
    memory_BNX: Tensor,
    k: int,
    *,
    temperature: float,
    estimator: Estimator = "sequential",
    mask_BN: Tensor | None = None,
) -> Selection:
    """Choose k documents a row so that a loss on what was read teaches the scores.

    Forward is a gather: no [B, K, N] x [B, N, X] product is formed. Backward contracts the upstream gradient with the
    candidates' memories in fp32 (the module's docstring has the formula). Slot j does not depend on later slots, so the
    first k' slots alone are simply ``k=k'``.

    Args:
        scores_BN: Scores; computed with in fp32 (float64 stays float64).
        memory_BNX: Candidates' memories; X may be several dimensions, as in [B, N, M, D].
        k: Number of slots.
        temperature: tau > 0. It shapes the gradient only.
        estimator: Whose gradient; K = 1 is the plain form with both.
        mask_BN: bool, True = a real candidate. A padded one is never chosen, and its score's gradient is exactly 0.

    Returns:
        Selection. Its memory carries gradient to ``scores_BN`` and, where required, to ``memory_BNX``.

    Raises:
        SelectionError: As `top_k`; or memory, temperature or estimator do not fit.
    """
    _check_soft(temperature, estimator)
    if memory_BNX.ndim < 3 or memory_BNX.shape[:2] != scores_BN.shape:
        raise SelectionError(
            "memories do not fit the scores",
            got=f"memory {tuple(memory_BNX.shape)} with scores {tuple(scores_BN.shape)}",
            expected="[B, N, ...] with [B, N]",
        )
    indices_BK = top_k(scores_BN, k, mask_BN)
    memory_BKX = _StraightThrough.apply(
        _at_least_fp32(scores_BN), memory_BNX, indices_BK, mask_BN, temperature, estimator
    )
    return Selection(memory_BKX, indices_BK)


def selection_matrix(
    scores_BN: Tensor,
    k: int,
    *,
    temperature: float,
    estimator: Estimator = "sequential",
    mask_BN: Tensor | None = None,
) -> Tensor:
    """Z of the module's docstring, written down plainly: the oracle for `straight_through_select`, and for analysis.

    ``selection_matrix(...) @ memory_BNX`` has the value and, through autograd, the gradients of the fast form, at the
    cost of a [B, K, N] x [B, N, X] product.

    Returns:
        selection_BKN: Rows are exactly one-hot, and differentiable with respect to the scores.

    Raises:
        SelectionError: As `straight_through_select`.
    """
    _check_soft(temperature, estimator)
    indices_BK = top_k(scores_BN, k, mask_BN)
    hard_BKN = _one_hot(indices_BK, scores_BN.shape[1])
    share_BKN, scale_BK1 = _soft_choice(_at_least_fp32(scores_BN), hard_BKN, mask_BN, temperature, estimator)
    soft_BKN = scale_BK1.detach() * share_BKN
    return hard_BKN + (soft_BKN - soft_BKN.detach())


class _StraightThrough(torch.autograd.Function):
    """Gather forward, contract backward."""

    @staticmethod
    def forward(
        ctx: Any,
        scores_BN: Tensor,
        memory_BNX: Tensor,
        indices_BK: Tensor,
        mask_BN: Tensor | None,
        temperature: float,
        estimator: Estimator,
    ) -> Tensor:
        ctx.save_for_backward(scores_BN, memory_BNX, indices_BK, mask_BN)
        ctx.temperature, ctx.estimator = temperature, estimator
        return memory_BNX[_rows(indices_BK), indices_BK]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BKX: Tensor) -> tuple[Tensor | None, ...]:
        scores_BN, memory_BNX, indices_BK, mask_BN = ctx.saved_tensors
        grad_scores_BN = grad_memory_BNX = None
        if ctx.needs_input_grad[0]:
            hard_BKN = _one_hot(indices_BK, scores_BN.shape[1])
            share_BKN, scale_BK1 = _soft_choice(scores_BN, hard_BKN, mask_BN, ctx.temperature, ctx.estimator)
            # In fp32 also under autocast: what counts is the difference of the c_j, which are close to each other.
            with torch.autocast(grad_BKX.device.type, enabled=False):
                gain_BKN = _at_least_fp32(grad_BKX).flatten(2) @ _at_least_fp32(memory_BNX).flatten(2).mT
            if mask_BN is not None:
                # Padding may hold anything, and 0 * inf would be NaN.
                gain_BKN = gain_BKN.masked_fill(~mask_BN[:, None], 0.0)
            centred_BKN = gain_BKN - (share_BKN * gain_BKN).sum(-1, keepdim=True)
            grad_scores_BN = ((scale_BK1 * share_BKN * centred_BKN).sum(1) / ctx.temperature).to(scores_BN.dtype)
        if ctx.needs_input_grad[1]:
            # A row's slots hold different documents, so plain assignment is the exact (and deterministic) Z_hard^T.
            grad_memory_BNX = torch.zeros_like(memory_BNX)
            grad_memory_BNX[_rows(indices_BK), indices_BK] = grad_BKX
        return grad_scores_BN, grad_memory_BNX, None, None, None, None


def _soft_choice(
    scores_BN: Tensor, hard_BKN: Tensor, mask_BN: Tensor | None, temperature: float, estimator: Estimator
) -> tuple[Tensor, Tensor]:
    """u_j as share_BKN (each row sums to 1; exactly 0 outside the competitors), and a_j as scale_BK1."""
    logits_BN = scores_BN / temperature
    if mask_BN is not None:
        logits_BN = logits_BN.masked_fill(~mask_BN, -torch.inf)
    logits_BKN = logits_BN[:, None].expand_as(hard_BKN)
    if estimator == "leave_own_out" and hard_BKN.shape[1] > 1:
        # The share comes from logits, not from p / |p|_1: where the own document holds all the mass that is 0 / 0.
        own_BKN = hard_BKN.bool()
        left_BK1 = torch.softmax(logits_BKN, -1).masked_fill(own_BKN, 0.0).sum(-1, keepdim=True)
        return torch.softmax(logits_BKN.masked_fill(own_BKN, -torch.inf), -1), left_BK1
    taken_BKN = (hard_BKN.cumsum(1) - hard_BKN).bool()
    return torch.softmax(logits_BKN.masked_fill(taken_BKN, -torch.inf), -1), scores_BN.new_ones(())


def _checked_scores(scores_BN: Tensor, k: int, mask_BN: Tensor | None) -> Tensor:
    """Detached scores with -inf at padding, after every check that `top_k` promises."""
    if scores_BN.ndim != 2:
        raise SelectionError("scores have the wrong shape", got=tuple(scores_BN.shape), expected="[B, N]")
    if mask_BN is not None and (mask_BN.shape != scores_BN.shape or mask_BN.dtype != torch.bool):
        raise SelectionError(
            "the candidate mask does not fit the scores",
            got=f"{mask_BN.dtype} {tuple(mask_BN.shape)}",
            expected=f"torch.bool {tuple(scores_BN.shape)}",
        )
    if k < 1:
        raise SelectionError("at least one slot is needed", got=f"k = {k}", expected="k >= 1")
    scores_BN = scores_BN.detach()
    finite_BN = scores_BN.isfinite()
    real_BN = torch.ones_like(finite_BN) if mask_BN is None else mask_BN
    short_B = real_BN.sum(-1) < k
    wrong_B = (real_BN & ~finite_BN).any(-1)
    if bool((short_B | wrong_B).any()):  # one device synchronisation for both checks
        if bool(short_B.any()):
            row = int(short_B.nonzero()[0])
            raise SelectionError(
                f"row {row} has too few candidates for {k} slots",
                got=f"{int(real_BN[row].sum())} real candidates",
                expected=f"at least {k}",
                hint="give the row more candidates, or lower top_k",
            )
        row, column = (real_BN & ~finite_BN).nonzero()[0].tolist()
        raise SelectionError(
            "a score is not finite",
            got=f"{scores_BN[row, column].item()} at row {row}, candidate {column}",
            expected="finite scores",
            hint="look for NaN or infinity in the query or in that candidate's memory",
        )
    return scores_BN.masked_fill(~real_BN, -torch.inf)


def _check_soft(temperature: float, estimator: str) -> None:
    if not 0 < temperature < float("inf"):
        raise SelectionError("the temperature must be positive and finite", got=temperature)
    if estimator not in get_args(Estimator):
        raise SelectionError("unknown estimator", got=repr(estimator), expected=" or ".join(get_args(Estimator)))


def _one_hot(indices_BK: Tensor, n: int) -> Tensor:
    return torch.nn.functional.one_hot(indices_BK, n)


def _rows(indices_BK: Tensor) -> Tensor:
    return torch.arange(indices_BK.shape[0], device=indices_BK.device)[:, None]


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
