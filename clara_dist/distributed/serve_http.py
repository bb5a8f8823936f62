"""The HTTP interface: a FastAPI app over anything that answers. Imports no ray, no torch, no transformers."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

import clara_dist
from clara_dist.config.http import (
    AnswerReply,
    AnswerRequest,
    ErrorReply,
    Health,
    Ready,
    RetrieveReply,
    RetrieveRequest,
)
from clara_dist.config.serve import ServeConfig
from clara_dist.distributed.serve_documents import DocumentWriter, documents_routes
from clara_dist.distributed.serve_errors import ApiError, api_error
from clara_dist.distributed.serve_guard import ApiKeys, RequestGuard
from clara_dist.distributed.serve_limits import Bounds
from clara_dist.distributed.serve_messages import Backend
from clara_dist.distributed.serve_metrics import CONTENT_TYPE, MeasuredAnswers, MeasuredRequests, ServeMetrics
from clara_dist.distributed.serve_openai import openai_routes
from clara_dist.distributed.serve_page import PAGE_PATHS, page_routes
from clara_dist.errors import ClaraError


def build_api(config: ServeConfig, backend: Backend, keys: ApiKeys, writer: DocumentWriter | None = None) -> FastAPI:
    """The app: routes, limits, errors; without a writer there are no routes that change the store."""
    api = FastAPI(
        title="clara_dist",
        version=clara_dist.__version__,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        responses={status: {"model": ErrorReply} for status in (400, 401, 404, 409, 413, 415, 429, 500, 503, 504)},
    )
    bounds, metrics = Bounds(config), ServeMetrics()
    backend = MeasuredAnswers(backend, metrics)

    @api.post("/v1/answers")
    async def answers(request: AnswerRequest) -> AnswerReply:
        return await backend.answer(
            bounds.ask(request.question, request.top_k, request.max_tokens, where=request.where)
        )

    @api.post("/v1/retrieve")
    async def retrieve(request: RetrieveRequest) -> RetrieveReply:
        return await backend.retrieve(bounds.question(request.question), bounds.top_k(request.top_k), request.where)

    @api.get("/healthz")
    async def healthz() -> Health:
        return await backend.health()

    @api.get("/readyz")
    async def readyz() -> Ready:
        await backend.health()
        return Ready()

    @api.get("/metrics", response_class=PlainTextResponse)
    async def metrics_text() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    api.include_router(openai_routes(config, backend, bounds))
    if writer is not None:
        api.include_router(documents_routes(config.limits, writer))
    api.include_router(page_routes())
    for kind in (ApiError, ClaraError, RequestValidationError, HTTPException, Exception):
        api.add_exception_handler(kind, _explain)
    api.add_middleware(RequestGuard, config=config, keys=keys)
    # The last one added is the first that a request meets: it counts what the guard refuses, too.
    paths = frozenset({*api.openapi()["paths"], *PAGE_PATHS})
    api.add_middleware(MeasuredRequests, metrics=metrics, paths=paths)
    return api


async def _explain(request: Request, error: Exception) -> Response:
    del request
    return api_error(error).response()
