"""Gloo ranks of which one is killed at a chosen moment: SIGKILL, so nothing of it is cleaned up."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist

from clara_dist.config import TrainConfig
from clara_dist.store import storage
from clara_dist.training import stage_run
from clara_dist.training.loop import run
from gloo_ranks import _loopback


@dataclass(frozen=True)
class Kill:
    """When a rank dies.

    Attributes:
        rank: Which.
        moment: ``begin`` of a step; ``update``, when its gradients are summed and before its weights change;
            ``publish``, when a checkpoint's file is written and not yet there; ``published``, when it has just appeared
            and nobody has been told; ``delete``, when an older checkpoint is to go.
        at: The step (0-based), or the beginning of the file's name.
    """

    rank: int
    moment: Literal["begin", "update", "publish", "published", "delete"]
    at: int | str


def run_ranks(config: TrainConfig, world_size: int, rendezvous: Path, kill: Kill | None = None) -> bool:
    """Start or resume a run; returns whether it came to its end. If a rank dies, the others are killed, as Ray does."""
    os.environ["GLOO_SOCKET_IFNAME"] = _loopback()
    # The server imports everything once, in a process without threads; each rank is a fork of it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["clara_dist.training.loop", "transformers.models.llama.modeling_llama"])
    arguments = (config.model_dump(mode="json"), world_size, str(rendezvous), kill)
    ranks = [context.Process(target=_rank, args=(rank, *arguments), daemon=True) for rank in range(world_size)]
    for process in ranks:
        process.start()
    waiting = list(ranks)
    while waiting:
        ended = wait([process.sentinel for process in waiting])
        waiting = [process for process in waiting if process.sentinel not in ended]
        if any(process.exitcode for process in ranks if process not in waiting):
            for process in waiting:
                process.kill()
    for process in ranks:
        process.join()
    codes = [process.exitcode for process in ranks]
    if kill is not None:
        assert codes[kill.rank] == -signal.SIGKILL, f"{kill} did not come about: {codes}"
    return not any(codes)


def _rank(rank: int, config: dict[str, Any], world_size: int, rendezvous: str, kill: Kill | None) -> None:
    store = dist.FileStore(rendezvous, world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    if kill is not None and kill.rank == rank:
        _arm(kill)
    run(TrainConfig.model_validate(config), resume=True)
    store.set(f"done-{rank}", "")
    store.wait([f"done-{other}" for other in range(world_size)])


def _arm(kill: Kill) -> None:
    if kill.moment == "begin":
        plan = stage_run.plan_step
        stage_run.plan_step = _dies(plan, lambda stage, step: step == kill.at)
    elif kill.moment == "update":
        factor = stage_run.lr_factor
        stage_run.lr_factor = _dies(factor, lambda config, step, n_steps: step == kill.at)
    elif kill.moment == "publish":
        storage.os.replace = _dies(os.replace, lambda source, target: Path(target).name.startswith(str(kill.at)))
    elif kill.moment == "published":
        sync = storage._sync_directory
        storage._sync_directory = _dies(sync, lambda folder: any(folder.glob(f"{kill.at}*")))
    else:
        delete = storage.LocalStorage.delete
        storage.LocalStorage.delete = _dies(delete, lambda self, file: Path(file).name.startswith(str(kill.at)))


def _dies(function: Callable[..., Any], now: Callable[..., bool]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if now(*args, **kwargs):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return wrapped
