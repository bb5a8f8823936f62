"""The engine deployment: from a question to its sources and its answer, piece by piece.

The model is imported where a replica starts: the process that only deploys does without torch (300 MB, some seconds).
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np
from ray import serve
from ray.serve.handle import DeploymentHandle

from clara_dist.config.http import AnswerReply, Health, RetrieveReply, Source, Timings, Usage
from clara_dist.config.serve import ServeConfig
from clara_dist.distributed.serve_gauges import EngineMetrics
from clara_dist.distributed.serve_messages import AnswerEvent, Ask, Done, Found
from clara_dist.distributed.serve_parts import Retrievers
from clara_dist.distributed.serve_retriever import Retrieved
from clara_dist.errors import ModelError, RequestError
from clara_dist.inference.engine import Piece
from clara_dist.store import parse_where


@dataclass(frozen=True)
class _Query:
    """A question that was found good and waits to be retrieved with others."""

    question: str
    top_k: int
    where: str | None
    since: float
    with_memory: bool


@dataclass(frozen=True)
class _Hit:
    """What was found for one question, when, and how long it took."""

    query_X: np.ndarray
    sources: tuple[Source, ...]
    memory_KMD: np.ndarray | None
    store_version: int
    missing_shards: int
    queue_s: float
    reason_s: float
    retrieve_s: float
    ended: float


class Engine:
    """Reasons, retrieves and generates. A plain class: Serve wraps it in `serve_app`.

    Questions that wait share one forward pass of the reasoner and one search of the store; answers join those that are
    being decoded. Whatever can be wrong with a single request is found before it meets others.
    """

    async def __init__(  # type: ignore[misc]
        self, config: ServeConfig, device: str, retrievers: Sequence[DeploymentHandle]
    ) -> None:
        """Load the model and meet the store. Serve awaits this.

        Args:
            config: What is served.
            device: ``cpu`` or ``cuda``.
            retrievers: Handles of the `Retriever` of each part of the store.

        Raises:
            FingerprintMismatchError: The store was written by another model; the message names the fields.
        """
        from clara_dist.distributed.serve_model import ServedModel

        self._model = ServedModel(config, device)
        self._stream_interval_s = config.stream_interval_s
        self._retrievers = Retrievers(retrievers, config, self._model.fingerprint)
        await self._retrievers.start()
        batched = serve.batch(max_batch_size=config.batch_size, batch_wait_timeout_s=config.batch_wait_s)
        self._find_batched = batched(self._find_batch)
        self._metrics = EngineMetrics()

    def check_health(self) -> None:
        """Serve's probe: a replica without its engine's thread is replaced. One that lives says what it does."""
        if not self._model.engine.is_alive:
            raise ModelError("the engine's thread has ended")
        self._metrics.observe(self._model.engine.stats, self._model.gpu_memory_bytes)

    def __del__(self) -> None:
        """Serve calls it when a replica is stopped, after its requests."""
        if hasattr(self, "_model"):
            self._model.engine.close()

    async def describe(self) -> Health:
        """What is served.

        Raises:
            UnavailableError: So many parts of the store are lost that no question can be answered.
        """
        self._retrievers.require_answers()
        return Health(
            model_version=self._model.version,
            store_version=self._retrievers.store.version,
            n_documents=self._retrievers.store.n_documents,
            missing_shards=self._retrievers.n_missing,
        )

    async def stream(self, ask: Ask) -> AsyncIterator[AnswerEvent]:
        """An answer as it comes: what it rests on, its text in pieces, how it ended.

        Raises:
            TokenizationError: The question or the prompt is too long for this model.
            FilterError: ``where`` is no filter of this store's columns.
            RequestError: The store is too small, the filter leaves nothing, or the answer would not fit.
            UnavailableError: A part of the store is lost.
        """
        since = time.perf_counter()
        self._require_good(ask.question, ask.top_k, ask.where)
        prompt = self._model.prompt(ask.question, ask.top_k, ask.sampling.max_tokens)
        hit: _Hit = await self._find_batched(_Query(ask.question, ask.top_k, ask.where, since, with_memory=True))
        if not hit.sources:
            raise RequestError("no document is left to answer from", got=f"where {ask.where}")
        if len(hit.sources) < ask.top_k:  # a filter or a lost part left fewer
            prompt = self._model.prompt(ask.question, len(hit.sources), ask.sampling.max_tokens)
        words = await self._model.words(ask.question, hit.query_X, hit.sources[0]) if ask.explain else ()
        yield Found(
            hit.sources, _timings(hit), len(prompt), self._model.version, hit.store_version, words, hit.missing_shards
        )
        n_tokens, first_s, sent = 0, 0.0, float("-inf")
        waiting = Piece("", 0)
        # Closed where it is left, so that who leaves frees the place at once.
        async with aclosing(self._model.engine.answer(prompt, hit.memory_KMD, ask.sampling)) as pieces:
            async for piece in pieces:
                now = time.perf_counter()
                first_s = first_s or now - hit.ended
                n_tokens += piece.n_tokens
                waiting = Piece(waiting.text + piece.text, waiting.n_tokens + piece.n_tokens, piece.finish_reason)
                if now - sent >= self._stream_interval_s or piece.finish_reason is not None:
                    yield waiting
                    waiting, sent = Piece("", 0), now
                if piece.finish_reason is not None:
                    yield Done(piece.finish_reason, n_tokens, _timings(hit, first_s, now - hit.ended))

    async def answer(self, ask: Ask) -> AnswerReply:
        """A whole answer at once; raises as `stream` does."""
        text: list[str] = []
        async for event in self.stream(ask):
            if isinstance(event, Found):
                found = event
            elif isinstance(event, Piece):
                text.append(event.text)
            else:
                done = event
        return AnswerReply(
            answer="".join(text),
            finish_reason=done.finish_reason,
            sources=list(found.sources),
            timings=done.timings,
            usage=Usage(prompt_tokens=found.prompt_tokens, completion_tokens=done.completion_tokens),
            model_version=found.model_version,
            store_version=found.store_version,
            missing_shards=found.missing_shards,
        )

    async def retrieve(self, question: str, top_k: int, where: str | None) -> RetrieveReply:
        """The ``top_k`` best documents for one question, or as many as ``where`` leaves.

        Raises:
            TokenizationError: The question is too long.
            FilterError: ``where`` is no filter of this store's columns.
            RequestError: The store is too small.
            UnavailableError: A part of the store is lost.
        """
        since = time.perf_counter()
        self._require_good(question, top_k, where)
        hit: _Hit = await self._find_batched(_Query(question, top_k, where, since, with_memory=False))
        return RetrieveReply(
            sources=list(hit.sources),
            timings=_timings(hit),
            model_version=self._model.version,
            store_version=hit.store_version,
            missing_shards=hit.missing_shards,
        )

    def _require_good(self, question: str, top_k: int, where: str | None) -> None:
        self._model.require_readable(question)
        store = self._retrievers.store
        if where is not None:
            parse_where(where, store.schema)
        if top_k > store.n_documents:
            raise RequestError(
                "top_k exceeds the number of documents", got=top_k, expected=f"at most {store.n_documents}"
            )

    async def _find_batch(self, batch: Sequence[_Query]) -> list[_Hit]:
        started = time.perf_counter()
        query_BX = await self._model.engine.reason([query.question for query in batch])
        reasoned = time.perf_counter()
        found = await self._retrievers.search(
            query_BX,
            [query.top_k for query in batch],
            [query.where for query in batch],
            with_memory=any(query.with_memory for query in batch),
        )
        ended = time.perf_counter()
        memories: list[np.ndarray] | list[None] = [None] * len(batch)
        if found.memory_TMD is not None:
            memories = np.split(found.memory_TMD, np.cumsum([len(documents) for documents in found.documents])[:-1])
        return [
            _Hit(
                query_X=query_BX[i],
                sources=_sources(found, i),
                memory_KMD=memories[i],
                store_version=found.store_version,
                missing_shards=found.missing_shards,
                queue_s=started - query.since,
                reason_s=reasoned - started,
                retrieve_s=ended - reasoned,
                ended=ended,
            )
            for i, query in enumerate(batch)
        ]


def _sources(found: Retrieved, i: int) -> tuple[Source, ...]:
    return tuple(
        Source(doc_id=d.doc_id, parent_id=d.parent_id, title=d.title, score=score, text=d.text)
        for d, score in zip(found.documents[i], found.scores[i], strict=True)
    )


def _timings(hit: _Hit, first_token_s: float = 0.0, generate_s: float = 0.0) -> Timings:
    return Timings(
        queue=hit.queue_s,
        reason=hit.reason_s,
        retrieve=hit.retrieve_s,
        first_token=first_token_s,
        generate=generate_s,
        total=hit.queue_s + hit.reason_s + hit.retrieve_s + generate_s,
    )
