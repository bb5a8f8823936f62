"""Numbers of the steps between two reports."""

from __future__ import annotations

import time
from collections.abc import Mapping


class Interval:
    """Adds up steps; its metrics are means over them.

    Loss and its parts are means over steps, as is the share of documents that were cut (``truncated``, where there are
    any); recall is a mean over the questions whose positives are known.
    """

    def __init__(self) -> None:
        self._n_steps = 0
        self._tokens = 0.0
        self._started = time.perf_counter()
        self._sums: dict[str, float] = {}
        self._recall_sum = self._recall_count = 0.0

    def add(self, means: Mapping[str, float], recall_sum: float, recall_count: float, tokens: float) -> None:
        """Add one step, with numbers of the whole global batch."""
        self._n_steps += 1
        self._tokens += tokens
        for name, value in means.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._recall_sum += recall_sum
        self._recall_count += recall_count

    def metrics(self, top_k: int) -> dict[str, float]:
        """Means, and tokens per second of wall-clock time, over all workers."""
        metrics = {name: total / self._n_steps for name, total in self._sums.items()}
        if self._recall_count:
            metrics[f"recall@{top_k}"] = self._recall_sum / self._recall_count
        metrics["tokens_per_s"] = self._tokens / (time.perf_counter() - self._started)
        return metrics
