"""Numbers of the steps between two reports."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from clara_dist.training.batches import Totals
from clara_dist.training.collectives import Group
from clara_dist.training.steps import StepOutput
from clara_dist.training.stopwatch import PARTS, Stopwatch


class Sums:
    """Adds up what micro-batches contribute; stays on their device, so nothing waits for a GPU.

    Every worker adds outputs of the same kind of step, which have the same names.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._recall = [0.0, 0.0]

    def add(self, output: StepOutput) -> None:
        """Add one micro-batch."""
        parts = {"loss": output.loss.detach(), **output.shares}
        for name, value in {**{f"={n}": v for n, v in parts.items()}, **output.observed}.items():
            before = self._sums.get(name)
            self._sums[name] = value.double() if before is None else before + value.double()
        self._recall[0] += sum(output.recalls)
        self._recall[1] += len(output.recalls)

    def pack(self) -> list[float]:
        """All sums of this worker, in an order that all workers share."""
        flat = torch.cat([self._sums[name].flatten() for name in sorted(self._sums)]).tolist()
        return [*self._recall, *flat]

    def unpack(self, totals: Sequence[float], n_steps: int, top_k: int) -> dict[str, float]:
        """Means of the summed packs of all workers; what was never observed has none."""
        recall, recall_count, *rest = totals
        values = iter(rest)
        found: dict[str, float] = {}
        for name in sorted(self._sums):
            total = next(values)
            if name.startswith("="):
                found[name[1:]] = total / n_steps
            else:
                count = next(values)
                found |= {name: total / count} if count else {}
        if recall_count:
            found[f"recall@{top_k}"] = recall / recall_count
        first = [name[1:] for name in self._sums if name.startswith("=")]  # the loss, then its parts
        return {name: found.pop(name) for name in first} | found


class Interval:
    """The steps since the last report.

    Losses and their parts are means over steps; recall and the other observations are means over the questions that
    have one; ``truncated`` is the share of documents that were cut, where any was. ``time/*`` are seconds a step, means
    over workers; ``memory_gib`` is the peak of the worker with the highest. Rates leave out the time of evaluations.

    Args:
        group: The workers.
        stopwatch: Of this worker's steps.
        batch_size: Examples a step, over all workers.
        top_k: K of the joint stage.
    """

    def __init__(self, group: Group, stopwatch: Stopwatch, batch_size: int, top_k: int) -> None:
        self._group = group
        self._stopwatch = stopwatch
        self._batch_size = batch_size
        self._top_k = top_k
        self._start()

    def _start(self) -> None:
        self._sums = Sums()
        self._n_steps = 0
        self._tokens = self._truncated = 0.0
        self._started = time.perf_counter()

    def add(self, outputs: Sequence[StepOutput], totals: Totals) -> None:
        """Add one step.

        Args:
            outputs: Of this worker's micro-batches.
            totals: Of the global batch.
        """
        self._n_steps += 1
        self._tokens += totals.tokens
        self._truncated += totals.truncated / totals.documents if totals.truncated else 0.0
        for output in outputs:
            self._sums.add(output)

    def report(self) -> dict[str, float]:
        """The numbers of all workers, equal on each, by one collective; the next interval starts."""
        seconds = self._stopwatch.lap()
        packed = [peak_memory_gib(self._group.device), *(seconds[part] for part in PARTS), *self._sums.pack()]
        workers_WP = torch.stack(self._group.gather(torch.tensor(packed, dtype=torch.float64)))
        totals = workers_WP.sum(0).tolist()
        wall_s = time.perf_counter() - self._started
        n_steps, mean_s = self._n_steps, [total / self._group.world_size for total in totals[1 : 1 + len(PARTS)]]
        spent = {part: value for part, value in zip(PARTS, mean_s, strict=True) if value > 0}
        training_s = max(wall_s - spent.get("evaluate", 0.0), 1e-9)
        metrics = self._sums.unpack(totals[1 + len(PARTS) :], n_steps, self._top_k)
        if self._truncated:
            metrics["truncated"] = self._truncated / n_steps
        metrics["tokens_per_s"] = self._tokens / training_s
        metrics["examples_per_s"] = self._batch_size * n_steps / training_s
        metrics["memory_gib"] = float(workers_WP[:, 0].max())
        metrics |= {f"time/{part}": value / n_steps for part, value in spent.items()}
        self._start()
        return metrics


def peak_memory_gib(device: torch.device) -> float:
    """Most memory that this process has held: on a GPU what torch allocated there, else the resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
