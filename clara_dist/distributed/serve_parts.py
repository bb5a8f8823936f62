"""The way from an engine to the retrievers: ask all parts of the store, merge what they find, follow its versions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from clara_dist.config.serve import ServeConfig
from clara_dist.distributed.serve_retriever import Retrieved, ServedStore
from clara_dist.errors import UnavailableError
from clara_dist.store.fingerprint import Fingerprint

logger = logging.getLogger("ray.serve")

Ask = Callable[[DeploymentHandle], DeploymentResponse]
# A part that was lost is asked again so often whether it is there.
_PROBE_S = 0.5
# A search of a part whose replica dies is asked once more: Serve has taken the replica out by then.
_TRIES = 2


class Retrievers:
    """All parts of a store, as an engine asks them.

    A part that does not answer is not waited for by further questions: until it answers a probe it counts as missing.
    What its absence means is the configuration's ``on_lost_shard``; it is never silent.

    Args:
        parts: Handles of the `Retriever` deployments, in the order of their shards.
        config: What is served.
        fingerprint: Of the model that the store must have been written by.
    """

    def __init__(self, parts: Sequence[DeploymentHandle], config: ServeConfig, fingerprint: Fingerprint) -> None:
        self._parts = tuple(parts)
        self._config = config
        self._fingerprint = fingerprint
        self._probes: dict[int, asyncio.Task[None]] = {}
        self._store: ServedStore | None = None
        self._following: asyncio.Task[None] | None = None

    @property
    def store(self) -> ServedStore:
        """The version that is searched."""
        assert self._store is not None, "start() comes first"
        return self._store

    @property
    def n_missing(self) -> int:
        """Parts that are known not to answer."""
        return len(self._probes)

    async def start(self) -> None:
        """Meet the store, and follow its versions from now on if the configuration says so.

        Raises:
            FingerprintMismatchError: It was written by another model; the message names the fields.
        """
        self._store = self._checked(await self._parts[0].describe.remote())
        if self._config.store_version is None and self._config.store_refresh_s > 0:
            self._following = asyncio.create_task(self._follow(self._config.store_refresh_s))

    def require_answers(self) -> None:
        """Check that a search can succeed as far as is known.

        Raises:
            UnavailableError: Too many parts are missing.
        """
        self._require(self.n_missing)

    def _require(self, n_missing: int) -> None:
        n_parts = len(self._parts)
        if n_missing == n_parts or (n_missing and self._config.on_lost_shard == "error"):
            raise UnavailableError(f"{n_missing} of {n_parts} parts of the document store do not answer")

    async def search(
        self, query_BX: np.ndarray, top_k: Sequence[int], where: Sequence[str | None], *, with_memory: bool
    ) -> Retrieved:
        """As `Retriever.search`, of the whole store.

        Raises:
            UnavailableError: A part does not answer, and ``on_lost_shard`` is ``error``; or none does.
        """
        self.require_answers()
        version = self.store.version

        def ask(part: DeploymentHandle) -> DeploymentResponse:
            return part.search.remote(
                query_BX,
                list(top_k),
                list(where),
                version=version,
                fingerprint=self._fingerprint.digest,
                with_memory=with_memory,
            )

        asked = await asyncio.gather(*(self._ask(shard, ask) for shard in range(len(self._parts))))
        found = [each for each in asked if each is not None]
        # By what this search has: a part that did not answer it may be back by now.
        self._require(len(self._parts) - len(found))
        return merge(found, top_k, len(self._parts))

    async def _ask(self, shard: int, ask: Ask) -> Retrieved | None:
        """What one part says; None if it is missing."""
        if shard in self._probes:
            return None
        try:
            return await asyncio.wait_for(self._persist(self._parts[shard], ask), self._config.limits.shard_timeout_s)
        except asyncio.TimeoutError as late:
            reason: Exception = late
        except Exception as error:
            if not _is_loss(error):
                raise
            reason = error
        logger.error("part %d of the store does not answer: %r", shard, reason)
        if shard not in self._probes:
            self._probes[shard] = asyncio.create_task(self._probe(shard))
        return None

    async def _persist(self, part: DeploymentHandle, ask: Ask) -> Any:
        for attempt in range(1, _TRIES + 1):
            response = ask(part)
            try:
                return await response
            except asyncio.CancelledError:
                response.cancel()
                raise
            except Exception as error:
                if attempt == _TRIES or not _is_loss(error):
                    raise
        raise AssertionError("unreachable")

    async def _probe(self, shard: int) -> None:
        """Wait until a part is there again."""
        while True:
            try:
                await asyncio.wait_for(
                    self._parts[shard].describe.remote(self.store.version), self._config.start_timeout_s
                )
                break
            except Exception as error:
                logger.warning("part %d of the store is still missing: %r", shard, error)
                await asyncio.sleep(_PROBE_S)
        logger.warning("part %d of the store answers again", shard)
        del self._probes[shard]

    async def _follow(self, every_s: float) -> None:
        """Serve the newest version. What fails leaves the old one served, and is tried again."""
        while True:
            await asyncio.sleep(every_s)
            try:
                await self._take_newest()
            except Exception as error:
                logger.error(
                    "version %d of the store is kept, a newer one cannot be opened: %r", self.store.version, error
                )

    async def _take_newest(self) -> None:
        there = [shard for shard in range(len(self._parts)) if shard not in self._probes]
        if not there:
            return
        newest: int = await self._parts[there[0]].newest.remote()
        if newest <= self.store.version:
            return
        # Opened before the first question searches it; further replicas of a part open it when they are asked.
        opened = await asyncio.gather(*(self._parts[shard].describe.remote(newest) for shard in there))
        self._store = self._checked(opened[0])
        logger.info("version %d of the store is served", newest)

    def _checked(self, store: ServedStore) -> ServedStore:
        store.fingerprint.require_match(self._fingerprint, f"the store {store.url}", f"the model {self._config.model}")
        return store


def merge(found: Sequence[Retrieved], top_k: Sequence[int], n_parts: int) -> Retrieved:
    """The best of what some of ``n_parts`` disjoint parts of one version found: what one search would have.

    Args:
        found: At least one.
        top_k: Documents per question.
        n_parts: How many should have answered.
    """
    n_missing = n_parts - len(found)
    if len(found) == 1 and not n_missing:
        return found[0]
    sizes = [[len(rows_K) for rows_K in each.rows] for each in found]
    memories = [
        None if each.memory_TMD is None else np.split(each.memory_TMD, np.cumsum(sizes[i])[:-1])
        for i, each in enumerate(found)
    ]
    documents, scores, rows, chosen = [], [], [], []
    for b, k in enumerate(top_k):
        scores_C = np.concatenate([np.array(each.scores[b], np.float64) for each in found])
        rows_C = np.concatenate([each.rows[b] for each in found])
        # By score, then by row: as one search of all rows orders them.
        best_K = np.lexsort((rows_C, -scores_C))[:k]
        candidates = [document for each in found for document in each.documents[b]]
        documents.append([candidates[i] for i in best_K])
        scores.append(scores_C[best_K].tolist())
        rows.append(rows_C[best_K])
        of_b = [memory[b] for memory in memories if memory is not None]
        if of_b:
            chosen.append(np.concatenate(of_b)[best_K])
    return Retrieved(
        documents, scores, rows, np.concatenate(chosen) if chosen else None, found[0].store_version, n_missing
    )


def _is_loss(error: Exception) -> bool:
    """Whether a replica was lost, rather than that it answered with an error."""
    lost = (RayError, DeploymentUnavailableError, ReplicaUnavailableError)
    return isinstance(error, lost) and not isinstance(error, RayTaskError)
