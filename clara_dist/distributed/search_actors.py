"""The search of the joint stage on Ray actors, each of which maps its own shards of the store.

For a store that is larger than the memory of a worker's node: a worker alone would read all of it from the disk at
every step. All workers of a run ask the same actors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from torch import Tensor

from clara_dist.config import StageConfig, TrainConfig
from clara_dist.errors import ClaraError, ClusterError
from clara_dist.retrieval.search import SearchResult
from clara_dist.retrieval.sharded import PartSearcher, ShardedSearcher
from clara_dist.store.manifest import read_manifest
from clara_dist.store.part import share_shards
from clara_dist.store.storage import open_storage
from clara_dist.store.where import parse_where
from clara_dist.training.run_directory import RunDirectory

# Each: how often Ray starts a lost actor again, on whatever node has room, and asks it once more.
_RESTARTS = 4
# A search takes seconds. One that waits for an actor to come back may wait for its node, and for its shards.
_PATIENCE_S = 1800.0


@dataclass(frozen=True)
class AskActors:
    """Asks all actors at once. Picklable: a copy in another process asks the same actors."""

    actors: tuple[ActorHandle, ...]
    store: str
    patience_s: float = _PATIENCE_S

    def __call__(self, query_BX: Tensor, k: int) -> list[SearchResult]:
        """What every actor finds.

        Raises:
            ClusterError: An actor was lost more often than Ray restarts it, or does not answer.
        """
        query = ray.put(query_BX)
        return self.wait([actor.search.remote(query, k) for actor in self.actors], self.patience_s)

    def wait(self, answers: Sequence[ray.ObjectRef], timeout_s: float | None) -> list[Any]:
        """All answers, or why there is none."""
        try:
            return list(ray.get(list(answers), timeout=timeout_s))
        except RayError as error:
            cause = error.cause if isinstance(error, RayTaskError) else None
            if isinstance(cause, ClaraError):
                raise cause from None
            what = "does not answer" if isinstance(error, GetTimeoutError) else "is lost"
            raise ClusterError(
                f"a search actor of the store {self.store} {what}",
                got=error,
                hint="resume goes on from the last checkpoint; more search_actors hold less each",
            ) from error


@contextmanager
def searching(config: TrainConfig, keys: Sequence[str]) -> Iterator[dict[str, ShardedSearcher]]:
    """Search actors for the length of a ``with`` block; they end with the block, or with the process that is in it.

    Args:
        config: The run.
        keys: The keys of its stages.

    Yields:
        By stage key, the searchers of the stages that search the store; none if ``search_actors`` is 0. The actors have
        opened their shards.

    Raises:
        ClusterError: An actor cannot start.
        StoreError: A store cannot be opened.
    """
    finished, stages = RunDirectory(config.run_dir).finished, zip(keys, config.stages, strict=True)
    searching_stages = [(key, stage) for key, stage in stages if stage.searches and finished(key) is None]
    searchers: dict[str, ShardedSearcher] = {}
    actors: list[ActorHandle] = []
    try:
        for key, stage in searching_stages if config.search_actors else ():
            searchers[key] = _start(stage, config.search_actors, config.cpus_per_search_actor, actors)
        yield searchers
    finally:
        # By itself an actor lives as long as any process remembers its handle, which Ray Train's do for a while.
        for actor in actors:
            ray.kill(actor)


def n_actors(config: TrainConfig) -> int:
    """Search actors of a run, of all its stages; a store of few shards gets fewer."""
    return config.search_actors * sum(stage.searches for stage in config.stages)


def _start(stage: StageConfig, n_parts: int, n_cpus: float, started: list[ActorHandle]) -> ShardedSearcher:
    """The searcher of one stage; its actors are added to ``started``."""
    assert stage.store is not None, "StageConfig requires it"
    version, parts = share_shards(stage.store, stage.store_version, n_parts)
    manifest = read_manifest(open_storage(stage.store), version)
    where = stage.candidates.where or None
    if where is not None:
        parse_where(where, manifest.schema)  # an actor that cannot start says nothing so clear
    actor = ray.remote(PartSearcher).options(
        num_cpus=n_cpus, scheduling_strategy="SPREAD", max_restarts=_RESTARTS, max_task_retries=_RESTARTS
    )
    threads = max(1, int(n_cpus))
    actors = tuple(actor.remote(stage.store, version, part, where, threads) for part in parts)
    started.extend(actors)
    ask = AskActors(actors, stage.store)
    # Without a limit: the driver gives up a run whose workers do not start, and remote shards may take hours.
    counts = ask.wait([each.n_rows.remote() for each in ask.actors], timeout_s=None)
    return ShardedSearcher(ask, sum(counts), version)
