"""The few collective operations that training needs, on one process as on many."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from clara_dist.errors import EchoedError, TrainingError


@dataclass(frozen=True)
class Group:
    """The data-parallel workers of a run, seen from one of them.

    Attributes:
        device: Where this worker computes. Collectives run there: NCCL takes no CPU tensor.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sum of each value over all workers, in float64; equal on every worker."""
        if self.world_size == 1:
            return [float(value) for value in values]
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all workers, in order of rank, on the CPU; all have the same shape."""
        if self.world_size == 1:
            return [tensor.cpu()]
        local = tensor.to(self.device)
        tensors = [torch.empty_like(local) for _ in range(self.world_size)]
        dist.all_gather(tensors, local)
        return [t.cpu() for t in tensors]

    def add_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Replace each gradient by its sum over all workers, in one message."""
        if self.world_size == 1:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))

    def raise_together(self, error: Exception | None) -> None:
        """Return if no worker has an error; else raise it there, and everywhere else that another worker has one."""
        if self.sum([error is not None])[0]:
            raise error or EchoedError("another worker of the run found an error", hint="it says which")

    def barrier(self) -> None:
        """Return when every worker has come here."""
        self.sum([0.0])


def current_group(use_gpu: bool | None = None) -> Group:
    """The group of this process: torch's default process group if there is one, else this process alone.

    Args:
        use_gpu: None means: if this process sees one.

    Raises:
        TrainingError: A GPU was asked for, and there is none.
    """
    device = torch.device("cpu")
    if use_gpu and not torch.cuda.is_available():
        raise TrainingError(
            "this worker sees no GPU", got="use_gpu = true", hint="set use_gpu to false, or leave it out"
        )
    if torch.cuda.is_available() if use_gpu is None else use_gpu:
        # Workers of one node may see all of its GPUs, or each its own alone.
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    if dist.is_initialized():
        return Group(dist.get_rank(), dist.get_world_size(), device)
    return Group(0, 1, device)
