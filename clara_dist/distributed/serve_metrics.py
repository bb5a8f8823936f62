"""What ``GET /metrics`` tells Prometheus of one ingress replica. Imports no ray, no torch, no transformers."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clara_dist.config.http import AnswerReply, Health, RetrieveReply, Timings
from clara_dist.distributed.serve_messages import AnswerEvent, Ask, Backend, Done, Found

CONTENT_TYPE = CONTENT_TYPE_LATEST
# Seconds: from a search in memory to a long answer on a CPU.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)
_STAGES = ("queue", "reason", "retrieve", "generate")
# Of paths that are not known: a client must not decide how many time series there are.
_OTHER = "other"


class ServeMetrics:
    """Counters and histograms, in base units."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "clara_requests", "Requests by path and HTTP status.", ("path", "status"), registry=self._registry
        )
        self.seconds = self._histogram("clara_request_seconds", "Until the last byte of the reply.", ("path",))
        self.stage = self._histogram("clara_stage_seconds", "Of answers and retrievals, by stage.", ("stage",))
        self.first_token = self._histogram("clara_first_token_seconds", "From the sources to the first token.")
        self.prompt_tokens = Counter("clara_prompt_tokens", "Read, memory tokens included.", registry=self._registry)
        self.completion_tokens = Counter("clara_completion_tokens", "Computed.", registry=self._registry)
        self.partial = Counter(
            "clara_partial_answers", "Answers and retrievals without some part of the store.", registry=self._registry
        )

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)

    def retrieved(self, timings: Timings) -> None:
        for stage in ("queue", "reason", "retrieve"):
            self.stage.labels(stage).observe(getattr(timings, stage))

    def answered(self, timings: Timings, prompt_tokens: int, completion_tokens: int) -> None:
        for stage in _STAGES:
            self.stage.labels(stage).observe(getattr(timings, stage))
        self.first_token.observe(timings.first_token)
        self.prompt_tokens.inc(prompt_tokens)
        self.completion_tokens.inc(completion_tokens)

    def _histogram(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Histogram:
        return Histogram(name, text, labels, buckets=_BUCKETS, registry=self._registry)


class MeasuredRequests:
    """ASGI middleware that counts requests, refused ones too."""

    def __init__(self, app: ASGIApp, metrics: ServeMetrics, paths: frozenset[str]) -> None:
        self.app = app
        self.metrics = metrics
        self.paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self.paths else _OTHER
        started, status = time.perf_counter(), 500

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, observed)
        finally:
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - started)


class MeasuredAnswers:
    """A `Backend` that notes what another one answers."""

    def __init__(self, backend: Backend, metrics: ServeMetrics) -> None:
        self._backend = backend
        self._metrics = metrics

    async def health(self) -> Health:
        return await self._backend.health()

    async def answer(self, ask: Ask) -> AnswerReply:
        reply = await self._backend.answer(ask)
        self._metrics.answered(reply.timings, reply.usage.prompt_tokens, reply.usage.completion_tokens)
        self._metrics.partial.inc(bool(reply.missing_shards))
        return reply

    async def retrieve(self, question: str, top_k: int, where: str | None) -> RetrieveReply:
        reply = await self._backend.retrieve(question, top_k, where)
        self._metrics.retrieved(reply.timings)
        self._metrics.partial.inc(bool(reply.missing_shards))
        return reply

    async def stream(self, ask: Ask) -> AsyncGenerator[AnswerEvent, None]:
        prompt_tokens = 0
        async with aclosing(self._backend.stream(ask)) as events:  # who leaves here leaves the engine, too
            async for event in events:
                if isinstance(event, Found):
                    prompt_tokens = event.prompt_tokens
                    self._metrics.partial.inc(bool(event.missing_shards))
                elif isinstance(event, Done):
                    self._metrics.answered(event.timings, prompt_tokens, event.completion_tokens)
                yield event
