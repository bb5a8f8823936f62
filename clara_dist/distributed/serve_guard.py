"""What a request must pass before anything parses it: API key, content type, size, time. Plain ASGI; imports no ray."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import re
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clara_dist.config.serve import ServeConfig, is_loopback
from clara_dist.distributed.serve_documents import DOCUMENTS_PATH
from clara_dist.distributed.serve_errors import ApiError
from clara_dist.distributed.serve_page import PAGE_PATHS
from clara_dist.errors import ConfigError

logger = logging.getLogger("ray.serve")

# Probes of orchestrators carry no key, and what they are told is no secret; nor is the page, where a key is typed in.
OPEN_PATHS = frozenset({"/healthz", "/readyz", *PAGE_PATHS})


class ApiKeys:
    """The accepted keys, as digests: comparing digests in constant time tells nothing about a key, nor its length.

    Args:
        keys: Separated by commas.
        file: Further keys, a line each; empty lines and those that begin with ``#`` are none. It is read again when it
            changes; one that then cannot be read, or has no key, leaves the keys as they are.

    Raises:
        ConfigError: The file cannot be read, or has no key.
    """

    def __init__(self, keys: str, file: Path | None = None) -> None:
        self._digests = [_digest(key.strip()) for key in keys.split(",") if key.strip()]
        self._file = file
        self._seen: tuple[int, int, int] | None = None
        self._from_file: list[bytes] = []
        if file is not None:
            self._read(file)

    @classmethod
    def of(cls, config: ServeConfig) -> ApiKeys:
        """Keys of this process's environment and of the configured file.

        Raises:
            ConfigError: There is none, and the server listens on more than loopback; or the file is no good.
        """
        file = None if config.api_key_file is None else Path(config.api_key_file)
        keys = cls(os.environ.get(config.api_key_env, ""), file)
        if not keys and not config.is_loopback:
            raise ConfigError(
                f"a server on {config.host} needs an API key",
                got=f"{config.api_key_env} is unset or empty, and there is no api_key_file",
                hint=f"set {config.api_key_env} to a long random string, or serve on 127.0.0.1",
            )
        return keys

    def __bool__(self) -> bool:
        return bool(self._digests or self._from_file)

    def accept(self, authorization: str) -> bool:
        """Whether an ``Authorization`` header carries one of the keys."""
        self._refresh()
        scheme, _, key = authorization.partition(" ")
        digest = _digest(key.strip())
        # No early exit: the time must not tell which key matched.
        matches = [hmac.compare_digest(digest, known) for known in (*self._digests, *self._from_file)]
        return scheme.lower() == "bearer" and any(matches)

    def _refresh(self) -> None:
        if self._file is None:
            return
        try:
            if _state(self._file) != self._seen:
                self._read(self._file)
        except (OSError, ConfigError) as error:
            logger.error("the API keys are left as they were: %s", error)

    def _read(self, file: Path) -> None:
        try:
            seen = _state(file)
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError("the file of API keys cannot be read", got=error, expected=str(file)) from error
        self._seen = seen
        digests = [_digest(line.strip()) for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not digests:
            raise ConfigError("the file of API keys has none", got=str(file), expected="a key on a line of its own")
        self._from_file = digests


def _state(file: Path) -> tuple[int, int, int]:
    """Changes with the file; an orchestrator swaps a link to it."""
    stat = file.stat()
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class RequestGuard:
    """ASGI middleware that refuses what must not reach the parser."""

    def __init__(self, app: ASGIApp, config: ServeConfig, keys: ApiKeys) -> None:
        self.app = app
        self.limits = config.limits
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            if scope["path"] not in OPEN_PATHS:
                self._require_key(scope, headers)
            if scope["method"] == "POST" or (scope["method"] == "DELETE" and scope["path"] == DOCUMENTS_PATH):
                _require_json(headers)
                receive = _replay(await self._body(scope["path"], headers, receive), receive)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _require_key(self, scope: Scope, headers: Headers) -> None:
        if self.keys:
            if not self.keys.accept(headers.get("authorization", "")):
                message = "missing or unknown API key; send it as 'Authorization: Bearer KEY'"
                raise ApiError(401, message, headers={"WWW-Authenticate": "Bearer"})
        elif not (is_loopback((scope.get("client") or ("",))[0]) and is_loopback(_host(headers))):
            # `serve deploy` takes the address from its own YAML, so the configured host proves nothing. And a web page
            # reaches loopback through a name of its own that resolves to it, but cannot make that name look like ours.
            raise ApiError(401, "this server has no API key and answers its own machine only, as localhost")

    async def _body(self, path: str, headers: Headers, receive: Receive) -> bytes:
        limit = self.limits.max_documents_bytes if path == DOCUMENTS_PATH else self.limits.max_body_bytes
        too_large = ApiError(413, f"the body is larger than {limit} bytes", headers={"Connection": "close"})
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            raise too_large
        try:
            return await asyncio.wait_for(_read(receive, limit, too_large), self.limits.body_timeout_s)
        except asyncio.TimeoutError:
            raise ApiError(408, f"the body did not arrive within {self.limits.body_timeout_s:g} s") from None


def _host(headers: Headers) -> str:
    """The ``Host`` header without its port."""
    host = re.sub(r":\d*$", "", headers.get("host", ""))
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def _require_json(headers: Headers) -> None:
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        # Also what keeps web pages out: a browser sends JSON across origins only after asking, and is not answered.
        raise ApiError(415, "the content type must be application/json")


async def _read(receive: Receive, limit: int, too_large: ApiError) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError(400, "the client left before its body was complete")
        body += message.get("body", b"")
        if len(body) > limit:
            raise too_large
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed
