"""The HTTP interface: a FastAPI app over anything that answers. Imports no ray, no torch, no transformers."""

from __future__ import annotations

from typing import Protocol

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

import clara_dist
from clara_dist.config.http import AnswerReply, AnswerRequest, ErrorReply, Health, RetrieveReply, RetrieveRequest
from clara_dist.config.serve import ServeConfig
from clara_dist.distributed.serve_errors import ApiError, api_error
from clara_dist.distributed.serve_guard import ApiKeys, RequestGuard


class Backend(Protocol):
    """What stands behind the HTTP interface. Every method may raise `ApiError` or any error that `api_error` maps."""

    async def health(self) -> Health: ...

    async def answer(self, question: str, top_k: int, max_tokens: int) -> AnswerReply: ...

    async def retrieve(self, question: str, top_k: int) -> RetrieveReply: ...


def build_api(config: ServeConfig, backend: Backend, keys: ApiKeys) -> FastAPI:
    """The app: routes, limits, errors."""
    api = FastAPI(
        title="clara_dist",
        version=clara_dist.__version__,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        responses={status: {"model": ErrorReply} for status in (400, 401, 413, 415, 429, 500, 503, 504)},
    )
    limits = config.limits

    def question(request: RetrieveRequest) -> str:
        _require("question", len(request.question), limits.max_question_chars, "characters")
        return request.question

    def top_k(request: RetrieveRequest) -> int:
        value = config.top_k if request.top_k is None else request.top_k
        return _require("top_k", value, limits.max_top_k, "documents")

    @api.post("/v1/answers")
    async def answers(request: AnswerRequest) -> AnswerReply:
        max_tokens = config.max_tokens if request.max_tokens is None else request.max_tokens
        _require("max_tokens", max_tokens, limits.max_tokens, "tokens")
        return await backend.answer(question(request), top_k(request), max_tokens)

    @api.post("/v1/retrieve")
    async def retrieve(request: RetrieveRequest) -> RetrieveReply:
        return await backend.retrieve(question(request), top_k(request))

    @api.get("/healthz")
    async def healthz() -> Health:
        return await backend.health()

    for kind in (ApiError, RequestValidationError, HTTPException, Exception):
        api.add_exception_handler(kind, _explain)
    api.add_middleware(RequestGuard, config=config, keys=keys)
    return api


def _require(name: str, value: int, limit: int, unit: str) -> int:
    if value > limit:
        raise ApiError(400, f"{name}: {value} {unit}, at most {limit} are allowed", param=name)
    return value


async def _explain(request: Request, error: Exception) -> Response:
    del request
    return api_error(error).response()
