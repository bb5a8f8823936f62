"""Straight-through top-k: the hard choice forward, the gradient of a soft one backward.

Whose gradient is chosen by the estimator's name; `clara_dist.core.estimators` has the maths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from clara_dist.core.estimators import ESTIMATORS, EstimatorForms, at_least_fp32
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
    candidates' memories in fp32. To read only the first k' slots, slice the memory: ``k=1`` is another estimator than
    the first slot of ``k=5`` (see ``estimator``).

    Args:
        scores_BN: Scores; computed with in fp32 (float64 stays float64).
        memory_BNX: Candidates' memories; X may be several dimensions, as in [B, N, M, D].
        k: Number of slots.
        temperature: tau > 0. It shapes the gradient only.
        estimator: Whose gradient. K = 1 is the plain form with both: no other slot is left to judge the document.
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
    select = _for_slots(estimator, k).select
    memory_BKX = select.apply(at_least_fp32(scores_BN), memory_BNX, indices_BK, mask_BN, temperature)
    return Selection(memory_BKX, indices_BK)


def selection_matrix(
    scores_BN: Tensor,
    k: int,
    *,
    temperature: float,
    estimator: Estimator = "sequential",
    mask_BN: Tensor | None = None,
) -> Tensor:
    """Z of `clara_dist.core.estimators`, written down plainly: the oracle for `straight_through_select`.

    ``selection_matrix(...) @ memory_BNX`` has the value and, through autograd, the gradients of the fast form, at the
    cost of a [B, K, N] x [B, N, X] product. It shares no code with the fast form but the hard choice.

    Returns:
        selection_BKN: Rows are exactly one-hot, and differentiable with respect to the scores.

    Raises:
        SelectionError: As `straight_through_select`.
    """
    _check_soft(temperature, estimator)
    hard_BKN = torch.nn.functional.one_hot(top_k(scores_BN, k, mask_BN), scores_BN.shape[1])
    logits_BN = at_least_fp32(scores_BN) / temperature
    if mask_BN is not None:
        logits_BN = logits_BN.masked_fill(~mask_BN, -torch.inf)
    soft_BKN = _for_slots(estimator, k).soft(logits_BN, hard_BKN)
    return hard_BKN + (soft_BKN - soft_BKN.detach())


def _for_slots(estimator: Estimator, k: int) -> EstimatorForms:
    """With a single slot nobody is left to judge its document: K = 1 is the plain form, which is ``sequential``."""
    return ESTIMATORS["sequential" if k == 1 else estimator]


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
    if estimator not in ESTIMATORS:
        raise SelectionError("unknown estimator", got=repr(estimator), expected=" or ".join(ESTIMATORS))
