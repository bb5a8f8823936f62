"""OpenAI's routes: chat completions, completions, models. Imports no ray, no torch, no transformers."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response, StreamingResponse

from clara_dist.config.http import AnswerReply, ErrorReply
from clara_dist.config.openai import ChatRequest, CompletionRequest, Extra, ModelCard, ModelList, OpenAIUsage
from clara_dist.config.serve import ServeConfig
from clara_dist.distributed.serve_errors import ApiError, api_error
from clara_dist.distributed.serve_limits import Bounds
from clara_dist.distributed.serve_messages import AnswerEvent, Ask, Backend, Done, Found
from clara_dist.inference.engine import Piece

Request = ChatRequest | CompletionRequest


def openai_routes(config: ServeConfig, answers: Backend, limits: Bounds) -> APIRouter:
    """The router."""
    router = APIRouter()
    card = ModelCard(id=config.model_name, created=int(time.time()))

    def as_ask(request: Request) -> Ask:
        if request.model != config.model_name:
            raise _no_model(request.model, config.model_name, "model")
        if request.stream_options is not None and not request.stream:
            raise ApiError(400, "stream_options: only with stream", param="stream_options")
        if request.clara.explain and not request.stream:
            raise ApiError(400, "clara.explain: only with stream", param="clara.explain")
        return limits.ask(
            request.question,
            request.clara.top_k,
            request.answer_tokens,
            temperature=request.temperature or 0.0,
            top_p=1.0 if request.top_p is None else request.top_p,
            seed=request.seed,
            stop=request.stop_texts,
            where=request.clara.where,
            explain=request.clara.explain,
        )

    async def respond(request: Request, shape: _Shape) -> Response:
        ask = as_ask(request)
        if not request.stream:
            reply = await answers.answer(ask)
            return Response(_json(shape.whole(reply)), media_type="application/json")
        events = answers.stream(ask)
        # Before the status is sent: what is wrong with the request is told by the status.
        found = await anext(events)
        assert isinstance(found, Found), "an answer begins with what it rests on"
        with_usage = request.stream_options is not None and request.stream_options.include_usage
        lines = _server_sent_events(shape, found, events, with_usage)
        return StreamingResponse(lines, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    @router.post("/v1/chat/completions", response_model=None)
    async def chat_completions(request: ChatRequest) -> Response:
        return await respond(request, _Chat.new(config.model_name, len(request.messages) - 1))

    @router.post("/v1/completions", response_model=None)
    async def completions(request: CompletionRequest) -> Response:
        return await respond(request, _Completion.new(config.model_name))

    @router.get("/v1/models")
    async def models() -> ModelList:
        return ModelList(data=[card])

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> ModelCard:
        if name != card.id:
            raise _no_model(name, card.id)
        return card

    return router


def _no_model(name: str, served: str, param: str | None = None) -> ApiError:
    return ApiError(404, f"there is no model {name[:200]!r} here; this server has {served!r}", param=param)


@dataclass(frozen=True)
class _Shape:
    """The JSON of one answer's objects."""

    id: str
    created: int
    model: str
    unread_messages: int = 0

    prefix = ""
    object = ""
    chunk_object = ""

    @classmethod
    def new(cls, model: str, unread_messages: int = 0) -> _Shape:
        return cls(f"{cls.prefix}-{uuid.uuid4().hex}", int(time.time()), model, unread_messages)

    def whole(self, reply: AnswerReply) -> dict[str, Any]:
        choice = {"index": 0, "logprobs": None, "finish_reason": reply.finish_reason, **self.content(reply.answer)}
        usage = _usage(reply.usage.prompt_tokens, reply.usage.completion_tokens)
        extra = Extra(**reply.model_dump(), unread_messages=self.unread_messages)
        return self._object(self.object, [choice], usage=usage, clara=extra.model_dump())

    def chunk(self, delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
        choice = {"index": 0, "logprobs": None, "finish_reason": finish_reason, **delta}
        return self._object(self.chunk_object, [choice], **more)

    def usage_chunk(self, found: Found, done: Done) -> dict[str, Any]:
        return self._object(self.chunk_object, [], usage=_usage(found.prompt_tokens, done.completion_tokens))

    def found(self, found: Found) -> dict[str, Any]:
        extra = Extra(
            sources=list(found.sources),
            timings=found.timings,
            model_version=found.model_version,
            store_version=found.store_version,
            missing_shards=found.missing_shards,
            unread_messages=self.unread_messages,
            words=[list(vector) for vector in found.words],
        )
        return extra.model_dump()

    def content(self, text: str) -> dict[str, Any]:
        """Of a whole answer's choice."""
        return {"text": text}

    def first_delta(self) -> dict[str, Any]:
        """Of a stream's first choice."""
        return {"text": ""}

    def delta(self, text: str) -> dict[str, Any]:
        """Of a further choice."""
        return {"text": text}

    def _object(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**head, "system_fingerprint": None, "choices": choices, **more}


class _Completion(_Shape):
    prefix = "cmpl"
    object = chunk_object = "text_completion"


class _Chat(_Shape):
    prefix = "chatcmpl"
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def content(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def first_delta(self) -> dict[str, Any]:
        return {"delta": {"role": "assistant", "content": ""}}

    def delta(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}}


async def _server_sent_events(
    shape: _Shape, found: Found, events: AsyncGenerator[AnswerEvent, None], with_usage: bool
) -> AsyncIterator[bytes]:
    """The stream of an answer. Its first chunk carries the sources, the one that ends it the timings."""
    # Who leaves between two chunks leaves the engine at once.
    async with aclosing(events):
        yield _line(shape.chunk(shape.first_delta(), clara=shape.found(found)))
        try:
            async for event in events:
                if isinstance(event, Piece) and event.text:
                    yield _line(shape.chunk(shape.delta(event.text)))
                elif isinstance(event, Done):
                    timings = event.timings.model_dump()
                    yield _line(shape.chunk(shape.delta(""), event.finish_reason, clara={"timings": timings}))
                    if with_usage:
                        yield _line(shape.usage_chunk(found, event))
            yield b"data: [DONE]\n\n"
        except Exception as error:
            # The status is sent already; clients know an error by its shape.
            yield _line(ErrorReply(error=api_error(error).body()).model_dump())


def _line(value: dict[str, Any]) -> bytes:
    return b"data: " + _json(value) + b"\n\n"


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    usage = OpenAIUsage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
    )
    return usage.model_dump()
