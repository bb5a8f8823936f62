"""Batches of similar length under a token budget."""

from __future__ import annotations

from collections.abc import Sequence

from clara_dist.errors import ConfigError


def length_buckets(lengths: Sequence[int], max_batch_tokens: int) -> list[list[int]]:
    """Group rows so that little is padded and no batch exceeds the budget.

    Sorted by length, longest first: padding is then at most the difference of neighbours, and a batch that does not fit
    into memory fails at once and not after hours.

    Args:
        lengths: Tokens of each row.
        max_batch_tokens: Upper bound of ``rows * longest row`` of a batch. A longer row gets a batch of its own.

    Returns:
        Row indices of each batch; every row occurs once.
    """
    if max_batch_tokens < 1:
        raise ConfigError("max_batch_tokens must be positive", got=max_batch_tokens)
    batches: list[list[int]] = []
    # Stable: rows of equal length keep their order, so the same input always makes the same batches.
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > max_batch_tokens:
            batches.append([])
        batches[-1].append(row)
    return batches


def packed_groups(lengths: Sequence[int], max_batch_tokens: int) -> list[list[int]]:
    """Group rows that stand end to end, in their order: nothing is padded, so only the sum of a group counts.

    Args:
        lengths: Tokens of each row.
        max_batch_tokens: Upper bound of a group's tokens. A longer row gets a group of its own.

    Returns:
        Row indices of each group; every row occurs once.
    """
    if max_batch_tokens < 1:
        raise ConfigError("max_batch_tokens must be positive", got=max_batch_tokens)
    groups: list[list[int]] = []
    total = 0
    for row, length in enumerate(lengths):
        if not groups or total + length > max_batch_tokens:
            groups.append([])
            total = 0
        groups[-1].append(row)
        total += length
    return groups
