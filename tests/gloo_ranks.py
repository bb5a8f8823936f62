"""Several ranks on one machine, as a function call."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing as mp

from clara_dist.config import TrainConfig
from clara_dist.training.loop import run


def run_on_ranks(configs: Sequence[TrainConfig], world_size: int, rendezvous: Path, *, resume: bool = False) -> None:
    """Run training configurations one after the other on ``world_size`` gloo processes."""
    # Children import torch: they must find the same single-thread settings as this process.
    mp.spawn(_rank, ([c.model_dump(mode="json") for c in configs], world_size, str(rendezvous), resume), world_size)


def _rank(rank: int, configs: Sequence[dict[str, object]], world_size: int, rendezvous: str, resume: bool) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    try:
        for config in configs:
            run(TrainConfig.model_validate(config), resume=resume)
    finally:
        dist.destroy_process_group()
