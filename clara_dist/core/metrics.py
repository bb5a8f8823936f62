"""Ranking metrics, for training's log and for evaluation alike: over tensors of positions or lists of document ids."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence

import torch
from torch import Tensor


def recall_at_k(
    ranked_BR: Tensor | Sequence[Sequence[Hashable]], positives_B: Sequence[Collection[Hashable]], k: int | None = None
) -> list[float]:
    """The share of a row's positives that is among its first k documents.

    With one positive that is 0 or 1; with two, of which one is found, 0.5.

    Args:
        ranked_BR: Positions, store rows or document ids, best first; rows may differ in length.
        positives_B: The right documents of each row, named in the same way.
        k: How many of the ranked ones count; None: all.

    Returns:
        One value for every row that has positives: a row without any has no recall.
    """
    rows = ranked_BR.tolist() if isinstance(ranked_BR, Tensor) else ranked_BR
    return [
        len(set(positives).intersection(ranked[:k])) / len(set(positives))
        for ranked, positives in zip(rows, positives_B, strict=True)
        if positives
    ]


def score_entropy(scores_BN: Tensor, temperature: float, mask_BN: Tensor) -> Tensor:
    """Entropy of softmax(s / tau) over each row's real candidates: how undecided the choice is.

    Args:
        scores_BN: Scores; what stands at padded positions does not matter.
        temperature: tau.
        mask_BN: bool, True = a real candidate; every row has one.

    Returns:
        entropy_B, fp32, in nats: 0 for a certain choice, log(N) for N equal scores.
    """
    log_p_BN = torch.log_softmax((scores_BN.float() / temperature).masked_fill(~mask_BN, -torch.inf), -1)
    return -(log_p_BN.exp() * log_p_BN.masked_fill(~mask_BN, 0.0)).sum(-1)


def score_margin(scores_BN: Tensor, mask_BN: Tensor, ahead_BN: Tensor | None = None) -> Tensor:
    """By how much one group of candidates is ahead of the others of its row, best against best.

    Args:
        scores_BN: Scores.
        mask_BN: bool, True = a real candidate.
        ahead_BN: bool, the group, such as the gold documents; None: the best candidate alone.

    Returns:
        margin_B, fp32: negative where another is ahead; NaN where a row has no candidate inside or none outside.
    """
    scores_BN = scores_BN.float().masked_fill(~mask_BN, -torch.inf)
    if ahead_BN is None:
        ahead_BN = torch.zeros_like(mask_BN).scatter(1, scores_BN.argmax(1, keepdim=True), True)
    best_B, other_B = (scores_BN.masked_fill(~of, -torch.inf).amax(1) for of in (ahead_BN, ~ahead_BN))
    return torch.where(best_B.isfinite() & other_B.isfinite(), best_B - other_B, torch.nan)
