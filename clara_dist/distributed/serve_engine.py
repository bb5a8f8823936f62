"""The engine deployment: takes questions in batches through its model and the retriever.

The model is imported where a replica starts: the process that only deploys does without torch (300 MB, some seconds).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from ray import serve
from ray.serve.handle import DeploymentHandle

from clara_dist.config.http import AnswerReply, Health, RetrieveReply, Source, Timings, Usage
from clara_dist.config.serve import ServeConfig
from clara_dist.distributed.serve_retriever import Retrieved, ServedStore
from clara_dist.errors import RequestError

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class _Pending:
    """A request that was found good and waits for its batch; without a prompt, only its sources are asked for."""

    question: str
    top_k: int
    since: float
    prompt: Sequence[int] = ()
    max_tokens: int = 0


@dataclass(frozen=True)
class _Found:
    """What the first half of a batch made: its sources, and the clock readings between its steps."""

    retrieved: Retrieved
    started: float
    reasoned: float
    ended: float


class Engine:
    """Reasons, retrieves and generates. A plain class: Serve wraps it in `serve_app`.

    All questions that wait when a batch starts share one forward pass of the reasoner, one search of the store and one
    batch of the generator. Whatever can be wrong with a single request is found before it joins a batch.
    """

    async def __init__(self, config: ServeConfig, device: str, retriever: DeploymentHandle) -> None:  # type: ignore[misc]
        """Load the model and meet the store. Serve awaits this.

        Args:
            config: What is served.
            device: ``cpu`` or ``cuda``.
            retriever: Handle of a `Retriever`.

        Raises:
            FingerprintMismatchError: The store was written by another model; the message names the fields.
        """
        import torch

        from clara_dist.distributed.serve_model import ServedModel

        self._model = ServedModel(config, device)
        self._retriever = retriever
        self._store: ServedStore = await retriever.describe.remote()
        self._store.fingerprint.require_match(
            self._model.fingerprint, f"the store {self._store.url}", f"the model {config.model}"
        )
        # One thread owns the model; the event loop stays free to queue, cancel and be probed meanwhile.
        self._model_thread = ThreadPoolExecutor(1, "model", torch.set_num_threads, (config.threads,))
        batched = serve.batch(max_batch_size=config.batch_size, batch_wait_timeout_s=config.batch_wait_s)
        self._answer_batched = batched(self._answer_batch)
        self._retrieve_batched = batched(self._retrieve_batch)

    async def describe(self) -> Health:
        return Health(
            model_version=self._model.version,
            store_version=self._store.version,
            n_documents=self._store.n_documents,
        )

    async def answer(self, question: str, top_k: int, max_tokens: int) -> AnswerReply:
        """Answer one question from its ``top_k`` best documents with at most ``max_tokens`` tokens.

        Raises:
            TokenizationError: The prompt is too long for this model.
            RequestError: The question is too long, the store is too small, or the answer would not fit.
        """
        since = time.perf_counter()
        self._require_fit(question, top_k)
        prompt = self._model.prompt(question, top_k, max_tokens)
        reply: AnswerReply = await self._answer_batched(_Pending(question, top_k, since, prompt, max_tokens))
        return reply

    async def retrieve(self, question: str, top_k: int) -> RetrieveReply:
        """The ``top_k`` best documents for one question.

        Raises:
            RequestError: The question is too long, or the store is too small.
        """
        since = time.perf_counter()
        self._require_fit(question, top_k)
        reply: RetrieveReply = await self._retrieve_batched(_Pending(question, top_k, since))
        return reply

    def _require_fit(self, question: str, top_k: int) -> None:
        self._model.require_readable(question)
        if top_k > self._store.n_documents:
            raise RequestError(
                "top_k exceeds the number of documents", got=top_k, expected=f"at most {self._store.n_documents}"
            )

    async def _answer_batch(self, batch: Sequence[_Pending]) -> list[AnswerReply]:
        found = await self._find(batch, with_memory=True)
        texts = await self._on_model_thread(
            self._model.generate,
            [pending.prompt for pending in batch],
            found.retrieved.memory_TMD,
            [pending.top_k for pending in batch],
            [pending.max_tokens for pending in batch],
        )
        generate_s = time.perf_counter() - found.ended
        return [
            AnswerReply(
                **self._common(found, i, pending, generate_s),
                answer=text.text,
                finish_reason=text.finish_reason,
                usage=Usage(
                    prompt_tokens=len(pending.prompt),
                    completion_tokens=text.n_tokens,
                    batch_size=len(batch),
                ),
            )
            for i, (pending, text) in enumerate(zip(batch, texts, strict=True))
        ]

    async def _retrieve_batch(self, batch: Sequence[_Pending]) -> list[RetrieveReply]:
        found = await self._find(batch, with_memory=False)
        return [RetrieveReply(**self._common(found, i, pending, 0.0)) for i, pending in enumerate(batch)]

    async def _find(self, batch: Sequence[_Pending], *, with_memory: bool) -> _Found:
        started = time.perf_counter()
        query_BX = await self._on_model_thread(self._model.query, [pending.question for pending in batch])
        reasoned = time.perf_counter()
        retrieved: Retrieved = await self._retriever.search.remote(
            query_BX,
            [pending.top_k for pending in batch],
            fingerprint=self._model.fingerprint.digest,
            with_memory=with_memory,
        )
        return _Found(retrieved, started, reasoned, time.perf_counter())

    async def _on_model_thread(self, work: Callable[..., ResultT], *args: Any) -> ResultT:
        return await asyncio.get_running_loop().run_in_executor(self._model_thread, work, *args)

    def _common(self, found: _Found, i: int, pending: _Pending, generate_s: float) -> dict[str, Any]:
        sources = [
            Source(
                doc_id=document.doc_id,
                parent_id=document.parent_id,
                title=document.title,
                score=score,
                text=document.text,
            )
            for document, score in zip(found.retrieved.documents[i], found.retrieved.scores[i], strict=True)
        ]
        timings = Timings(
            queue=found.started - pending.since,
            reason=found.reasoned - found.started,
            retrieve=found.ended - found.reasoned,
            generate=generate_s,
            total=found.ended + generate_s - pending.since,
        )
        return {
            "sources": sources,
            "timings": timings,
            "model_version": self._model.version,
            "store_version": self._store.version,
        }
