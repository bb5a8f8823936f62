"""Several ranks on one machine, as a function call."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing as mp

from clara_dist.config import TrainConfig
from clara_dist.training.loop import run


def run_on_ranks(configs: Sequence[TrainConfig], world_size: int, rendezvous: Path, *, resume: bool = False) -> None:
    """Run training configurations one after the other on ``world_size`` gloo processes."""
    # Children import torch: they must find the same single-thread settings as this process. A rank that crashes says
    # where, and ranks meet on loopback: the address that a busy machine finds for its own name may come late or change.
    os.environ.update({"PYTHONFAULTHANDLER": "1", "GLOO_SOCKET_IFNAME": _loopback()})
    mp.spawn(_rank, ([c.model_dump(mode="json") for c in configs], world_size, str(rendezvous), resume), world_size)


def _rank(rank: int, configs: Sequence[dict[str, object]], world_size: int, rendezvous: str, resume: bool) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    store = dist.FileStore(rendezvous, world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    for config in configs:
        run(TrainConfig.model_validate(config), resume=resume)
    # Who leaves first closes its connections, which another that is still reading from them takes for a failure.
    store.set(f"done-{rank}", "")
    store.wait([f"done-{other}" for other in range(world_size)])
    dist.destroy_process_group()


def _loopback() -> str:
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
