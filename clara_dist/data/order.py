"""The order of training examples, as a pure function of the step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from clara_dist.errors import CheckpointError, DataError


@dataclass(frozen=True)
class ExampleOrder:
    """An endless sequence of epochs, each of which holds every example once; batches run across their borders.

    Nothing moves inside: a run that resumes at step s asks for batch s, and needs no other state.

    Attributes:
        n: Number of examples.
        seed: Decides the shuffling.
        shuffle: Another permutation for every epoch; otherwise the order of the file.
        fingerprint: Content hash of the examples (`clara_dist.data.examples.ExamplesDigest`).
    """

    n: int
    seed: int = 0
    shuffle: bool = True
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise DataError("there are no examples to put in order")
        if self.seed < 0:
            raise DataError("the seed of an order must not be negative", got=self.seed)

    def batch(self, step: int, batch_size: int) -> npt.NDArray[np.int64]:
        """Indices of the examples of a step, [batch_size]; steps count from 0 and have one batch size."""
        positions = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
        epochs, offsets = np.divmod(positions, self.n)
        if not self.shuffle:
            return offsets
        batch = np.empty_like(offsets)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            batch[chosen] = _permutation(self.n, self.seed, epoch)[offsets[chosen]]
        return batch

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the order, besides the step."""
        return asdict(self)

    def require_match(self, saved: Mapping[str, Any]) -> None:
        """Refuse to go on with other examples, or in another order, than a checkpoint was trained with.

        Raises:
            CheckpointError: Names the fields that differ, with both values.
        """
        now = self.state()
        differing = [name for name in now if now[name] != saved.get(name)]
        if differing:
            raise CheckpointError(
                f"the checkpoint was trained with other examples or another order ({', '.join(differing)})",
                got=", ".join(f"{name}={now[name]}" for name in differing),
                expected=", ".join(f"{name}={saved.get(name)}" for name in differing),
                hint="resume with the stage's own data, seed and shuffle, or start a new run",
            )


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    # numpy promises stable streams for bit generators but not for Generator.permutation (NEP 19); a run may be resumed
    # with another numpy. A stable sort also decides ties.
    keys = np.random.PCG64(np.random.SeedSequence((seed, epoch))).random_raw(n)
    return np.argsort(keys, kind="stable")
