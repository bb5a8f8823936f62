"""Ranking metrics, for training's log and for evaluation alike: over tensors of positions or lists of document ids."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence

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
