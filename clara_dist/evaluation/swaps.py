"""What the joint stage's gradient believes of a document, against what the document does.

The generator reads K documents. A *swap* puts candidate i into slot j, in place of the document i_j that is there; the
other slots keep theirs (so i may then be read twice). Its true change of the answer loss L is measured by running the
generator again. What training knows of it is linear:

    c_ji = <dL/dM_sel_j, M_i - M_{i_j}>.

An estimator turns c into an update of the scores s. The exact update is the one that the plain soft choice, which
excludes nothing, would make of the true changes D_ji: with p = softmax(s / tau),

    exact_i = (1 / tau) sum_j p_i (D_ji - sum_l p_l D_jl),

the gradient, where s is, of the expected loss if each slot in turn drew its document from p while the others keep
theirs. The cosine between it and an estimator's own gradient, question by question, says whether training pulls the
scores where the loss wants them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clara_dist.core import Estimator, straight_through_select

# loss(questions_S, memory_SKMD) -> [S]: the loss of question questions_S[s] if its slots hold memory_SKMD[s].
LossOf = Callable[[Tensor, Tensor], Tensor]


def estimators_for(k: int) -> tuple[Estimator, ...]:
    """The estimators that differ with K slots."""
    return ("sequential",) if k == 1 else ("sequential", "leave_own_out")


@dataclass(frozen=True)
class Swaps:
    """All swaps of B questions. Tensors are on the CPU, in float64 where they are real.

    Attributes:
        indices_BK: Which candidate each slot holds.
        real_BN: bool; False where a shorter list of candidates is padded.
        true_BKN: Measured changes of the loss; 0 for the slot's own document and for padding.
        linear_BKN: Linear estimates of them.
        exact_BN: The exact gradient with respect to the scores.
        gradients_BN: Each estimator's.
    """

    indices_BK: Tensor
    real_BN: Tensor
    true_BKN: Tensor
    linear_BKN: Tensor
    exact_BN: Tensor
    gradients_BN: dict[Estimator, Tensor]


def measure_swaps(
    loss: LossOf,
    scores_BN: Tensor,
    memory_BNMD: Tensor,
    k: int,
    *,
    temperature: float,
    mask_BN: Tensor,
    batch_size: int = 64,
) -> Swaps:
    """Try every swap of B questions.

    Args:
        loss: Of the answer; differentiable with respect to the memories.
        scores_BN: The reasoner's.
        memory_BNMD: Memories of the candidates.
        k: Slots.
        temperature: tau of the estimators.
        mask_BN: bool, True = a real candidate.
        batch_size: Swaps of one forward pass; there are B * K * (N - 1).

    Raises:
        SelectionError: A question has fewer candidates than slots, or what `straight_through_select` refuses.
    """
    scores_BN = scores_BN.double().requires_grad_()
    all_B = torch.arange(len(scores_BN), device=scores_BN.device)
    chosen = {
        name: straight_through_select(
            scores_BN, memory_BNMD, k, temperature=temperature, estimator=name, mask_BN=mask_BN
        )
        for name in estimators_for(k)
    }
    # The forward value is the same hard choice with all of them, and so is the loss's slope there.
    indices_BK = chosen["sequential"].indices_BK
    memory_BKMD = chosen["sequential"].memory_BKX.detach().requires_grad_()
    loss_B = loss(all_B, memory_BKMD)
    (slope_BKMD,) = torch.autograd.grad(loss_B.sum(), memory_BKMD)
    gradients_BN = {
        name: torch.autograd.grad(selection.memory_BKX, scores_BN, slope_BKMD)[0].cpu()
        for name, selection in chosen.items()
    }

    gain_BKN = slope_BKMD.flatten(2).double() @ memory_BNMD.flatten(2).double().mT
    linear_BKN = (gain_BKN - gain_BKN.gather(2, indices_BK[..., None])).masked_fill(~mask_BN[:, None], 0.0)
    true_BKN = torch.zeros_like(linear_BKN)
    own_BKN = torch.nn.functional.one_hot(indices_BK, scores_BN.shape[1]).bool()
    with torch.no_grad():
        for swaps_S3 in (mask_BN[:, None] & ~own_BKN).nonzero().split(batch_size):
            question_S, slot_S, candidate_S = swaps_S3.unbind(1)
            memory_SKMD = memory_BKMD[question_S]
            memory_SKMD[torch.arange(len(slot_S)), slot_S] = memory_BNMD[question_S, candidate_S].to(memory_SKMD.dtype)
            change_S = loss(question_S, memory_SKMD) - loss_B[question_S]
            true_BKN[question_S, slot_S, candidate_S] = change_S.double()
        p_B1N = torch.softmax((scores_BN / temperature).masked_fill(~mask_BN, -torch.inf), -1)[:, None]
        exact_BN = (p_B1N * (true_BKN - (p_B1N * true_BKN).sum(-1, keepdim=True))).sum(1) / temperature
    return Swaps(indices_BK.cpu(), mask_BN.cpu(), true_BKN.cpu(), linear_BKN.cpu(), exact_BN.cpu(), gradients_BN)
