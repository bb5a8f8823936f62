"""What the joint stage is compared with: other ways to connect the answer loss with the choice of documents.

- ``hard``: the chosen documents are read, and the scores get no gradient: the generator learns alone.
- ``soft``: the generator reads Z_soft M, the sequential estimator's soft choice itself, in training. What it reads at
  inference is a hard choice, which it has never seen; and a mixture over a corpus could not be served.
- ``contrastive``: the scores are taught by labels instead: which candidates hold the answer.

They are measured by ``clara-dist bench ablations``; nothing is trained with them for use.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from clara_dist.core.estimators import at_least_fp32, sequential_soft
from clara_dist.core.selection import Selection, top_k

Ablation = Literal["hard", "soft", "contrastive"]


def select_without_gradient(
    scores_BN: Tensor, memory_BNX: Tensor, k: int, *, mask_BN: Tensor | None = None
) -> Selection:
    """The k best documents; the scores' gradient is zero, and not absent: their parameters stay in the graph.

    Raises:
        SelectionError: As `top_k`.
    """
    indices_BK = top_k(scores_BN, k, mask_BN)
    memory_BKX = memory_BNX[torch.arange(len(indices_BK), device=indices_BK.device)[:, None], indices_BK]
    return Selection(memory_BKX + 0.0 * scores_BN.sum().to(memory_BKX.dtype), indices_BK)


def soft_mixture(
    scores_BN: Tensor, memory_BNX: Tensor, k: int, *, temperature: float, mask_BN: Tensor | None = None
) -> Selection:
    """Slot j reads the mean memory under softmax(s / tau) over what earlier slots have not taken.

    Args:
        scores_BN: Scores.
        memory_BNX: Candidates' memories; X may be several dimensions.
        k: Slots.
        temperature: tau.
        mask_BN: bool, True = a real candidate.

    Returns:
        Selection, whose indices are those of the hard choice and whose memory is the mixtures', differentiable in all.

    Raises:
        SelectionError: As `top_k`.
    """
    indices_BK = top_k(scores_BN, k, mask_BN)
    logits_BN = at_least_fp32(scores_BN) / temperature
    memory_BNX = at_least_fp32(memory_BNX)
    if mask_BN is not None:
        logits_BN = logits_BN.masked_fill(~mask_BN, -torch.inf)
        memory_BNX = memory_BNX.masked_fill(~mask_BN.view(*mask_BN.shape, *[1] * (memory_BNX.ndim - 2)), 0.0)
    share_BKN = sequential_soft(logits_BN, torch.nn.functional.one_hot(indices_BK, scores_BN.shape[1]))
    mixed_BKX = share_BKN @ memory_BNX.flatten(2)
    return Selection(mixed_BKX.unflatten(2, memory_BNX.shape[2:]), indices_BK)


def contrastive_nll(scores_BN: Tensor, gold_BN: Tensor, *, temperature: float, mask_BN: Tensor | None = None) -> Tensor:
    """-log of the share of softmax(s / tau) that the right documents have (InfoNCE; van den Oord et al., 2018).

    Args:
        scores_BN: Scores.
        gold_BN: bool, which candidates hold the answer.
        temperature: tau.
        mask_BN: bool, True = a real candidate.

    Returns:
        nll_B, fp32 or wider; exactly 0, with zero gradient, for a question whose candidates hold no right document.
    """
    logits_BN = at_least_fp32(scores_BN) / temperature
    if mask_BN is not None:
        logits_BN = logits_BN.masked_fill(~mask_BN, -torch.inf)
    known_B = gold_BN.any(-1)
    # Where nothing is gold, all is: log 1 = 0, where -inf would make the gradient NaN.
    gold_BN = gold_BN | ~known_B[:, None]
    nll_B = logits_BN.logsumexp(-1) - logits_BN.masked_fill(~gold_BN, -torch.inf).logsumexp(-1)
    return nll_B.where(known_B, torch.zeros_like(nll_B))
