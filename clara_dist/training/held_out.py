"""Held-out examples, measured while a stage trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple

from clara_dist.config.training import StageConfig
from clara_dist.data.examples import Example
from clara_dist.training.batches import Batch, Collate, StepPlan, Totals
from clara_dist.training.collectives import Group
from clara_dist.training.engine import Engine
from clara_dist.training.metrics import Sums


class HeldOut:
    """This worker's share of the held-out examples, as batches.

    It draws nothing at random and leaves no trace in weights, optimiser or random state: a run that is evaluated ends
    bit for bit as one that is not. All workers make the same number of forward passes, as ZeRO 3 needs it.

    Args:
        stage: `StageConfig.held_out`.
        examples: The held-out ones.
        collate: The stage's.
        group: The workers.
    """

    def __init__(self, stage: StageConfig, examples: Sequence[Example], collate: Collate, group: Group) -> None:
        assert stage.evaluation is not None, "only built where the stage has one"
        self._group = group
        self._top_k = stage.top_k
        self.n_examples = min(stage.evaluation.n_examples or len(examples), len(examples))
        # Evenly spread: the first ones of a sorted file would be of one kind.
        chosen = [i * len(examples) // self.n_examples for i in range(self.n_examples)]
        mine = chosen[group.rank :: group.world_size]
        size, most = stage.evaluation.batch_size, -(-self.n_examples // group.world_size)
        plan = StepPlan(stage.top_k, from_corpus=stage.stage == "joint" and stage.candidates.source == "corpus")
        self._batches: list[tuple[Batch, bool]] = []
        for start in range(0, most, size):
            # A worker without a share of the last batch passes something through, and does not count it.
            indices = mine[start : start + size]
            batch = collate([examples[i] for i in indices or chosen[:1]], plan)
            self._batches.append((batch, bool(indices)))

    def measure(self, engine: Engine) -> dict[str, float]:
        """Loss and what the stage's step observes, over all held-out examples. Collective; equal on every worker."""
        totals = self._global_totals()
        sums = Sums()
        for batch, counts in self._batches:
            output = engine.evaluate(batch.to(self._group.device), totals)
            sums.add(output if counts else output.without_share())
        return sums.unpack(self._group.sum(sums.pack()), 1, self._top_k)

    def _global_totals(self) -> Totals:
        counts = [astuple(batch.totals) for batch, counts in self._batches if counts] or [(0.0,) * 4]
        return Totals(*self._group.sum([sum(column) for column in zip(*counts, strict=True)]))
