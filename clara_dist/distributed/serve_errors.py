"""What a client is told when it gets no answer: one shape (OpenAI's), and never a stack trace."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from clara_dist.config.http import ErrorBody, ErrorReply
from clara_dist.errors import ClaraError, FilterError, RequestError, TokenizationError, UnavailableError

logger = logging.getLogger("ray.serve")

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
_CODES = {
    400: "invalid_request",
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    409: "conflict",
    413: "body_too_large",
    415: "unsupported_media_type",
    429: "overloaded",
    500: "internal_error",
    503: "not_ready",
    504: "timeout",
}
# Seconds in which Serve replaces a replica, roughly.
SOON = {"Retry-After": "2"}


class ApiError(Exception):
    """An answer with an error status.

    Args:
        status: HTTP status.
        message: For the client: what was wrong and what to do.
        param: The field of the request that is wrong.
        headers: Further response headers.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.headers = headers

    def body(self) -> ErrorBody:
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return ErrorBody(message=self.message, type=kind, param=self.param, code=_CODES.get(self.status))

    def response(self) -> JSONResponse:
        return JSONResponse(ErrorReply(error=self.body()).model_dump(), self.status, self.headers)


def overloaded(retry_after_s: int = 1) -> ApiError:
    """The queue is full."""
    return ApiError(429, "the server is full; try again later", headers={"Retry-After": str(retry_after_s)})


def not_ready() -> ApiError:
    """No engine can be reached yet, or it was just lost."""
    return ApiError(503, "the model is being loaded; try again later", headers=SOON)


def api_error(error: BaseException) -> ApiError:
    """What a client is told about an error.

    Errors of the request are spelled out. All others are ours: they go to the log, under an id that the client gets.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid_field(error)
    if isinstance(error, HTTPException):
        message = {404: "no such path", 405: "this path does not take this method"}.get(error.status_code)
        return ApiError(error.status_code, message or str(error.detail), headers=dict(error.headers or {}))
    if isinstance(error, FilterError):
        return ApiError(400, _one_line(error), param="where")
    if isinstance(error, UnavailableError):
        return ApiError(error.status, _one_line(error), headers=SOON)
    if isinstance(error, (RequestError, TokenizationError)):
        return ApiError(error.status if isinstance(error, RequestError) else 400, _one_line(error))
    error_id = uuid.uuid4().hex
    logger.error("error %s", error_id, exc_info=error)
    return ApiError(500, f"internal error {error_id}; the server's log has the details")


def _one_line(error: ClaraError) -> str:
    return "; ".join(line.strip() for line in str(error).splitlines())


def _invalid_field(error: RequestValidationError) -> ApiError:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is not valid JSON")
    # The value itself is not repeated: it may be large, or not printable.
    path = ".".join(_place(first["loc"][1:], error.body, first["type"])) or None
    return ApiError(400, f"{path or 'the body'}: {first['msg'].removeprefix('Value error, ')}", param=path)


def _place(location: Sequence[int | str], body: Any, kind: str) -> Iterator[str]:
    """What of pydantic's location is in the body, or missing there; not the branches of types that it also names."""
    for i, part in enumerate(location):
        inside = part in body if isinstance(body, dict) else isinstance(body, list) and isinstance(part, int)
        if inside:
            body = body[part]
        if inside or (kind == "missing" and i == len(location) - 1):
            yield str(part)
