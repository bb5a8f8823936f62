"""The ingress deployment: HTTP in front of the engine. Loads neither torch nor transformers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from clara_dist.config.documents import DocumentsReply, DocumentsRequest, RemoveReply, RemoveRequest
from clara_dist.config.http import AnswerReply, Health, RetrieveReply
from clara_dist.config.serve import ServeConfig
from clara_dist.distributed.serve_errors import SOON, ApiError, api_error, not_ready, overloaded
from clara_dist.distributed.serve_flow import Flow
from clara_dist.distributed.serve_guard import ApiKeys
from clara_dist.distributed.serve_http import build_api
from clara_dist.distributed.serve_messages import AnswerEvent, Ask, Done

# How long a request waits for an engine that is being loaded or replaced, before it is told so: on a busy machine an
# engine that is there needs seconds for its first word, and a roll-over must fail nobody.
_FIRST_CONTACT_S = 5.0
# Whoever asks for health asks often, and wants to know now.
_PROBE_S = 1.0
# An engine that said something so recently is there, even if it has no time for a probe.
_BUSY_S = 10.0
# A request whose engine dies is given to another one, once: it may be what kills them.
_LOST = (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError)


class Ingress:
    """`Backend` over an engine's handle. A plain class: Serve wraps it in `serve_app`."""

    def __init__(self, config: ServeConfig, engine: DeploymentHandle, writer: DeploymentHandle | None = None) -> None:
        self._config = config
        self._writer = None if writer is None else RemoteWriter(writer, config.limits.request_timeout_s)
        self._keys = ApiKeys.of(config)
        self._engine = engine
        self._contact: asyncio.Task[Health] | None = None
        self._known: Health | None = None
        self._heard = 0.0
        self._flow = Flow()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve's hook for an app that is built in the replica, around this object."""
        return build_api(self._config, self, self._keys, self._writer)

    async def health(self) -> Health:
        """What the engine serves, asked anew.

        Raises:
            ApiError: 503 where no engine is there, or too much of the store is missing.
        """
        response = self._engine.describe.remote()
        try:
            known: Health = await asyncio.wait_for(response, _PROBE_S)
            self._known = known
        except (asyncio.TimeoutError, BackPressureError):
            response.cancel()
            # An engine that is full makes its probes wait as well, and is no less ready for that.
            if self._known is None or time.monotonic() - self._heard > _BUSY_S:
                raise not_ready() from None
            known = self._known
        except Exception as error:
            raise self._translate(error) from None
        return known

    async def answer(self, ask: Ask) -> AnswerReply:
        with self._flow.request():
            reply: AnswerReply = await self._call("answer", ask)
        return reply

    async def stream(self, ask: Ask) -> AsyncGenerator[AnswerEvent, None]:
        """An answer as it comes. Whoever closes the iterator cancels it in the engine."""
        deadline = time.monotonic() + self._config.limits.request_timeout_s
        with self._flow.request():
            for is_last in (False, True):
                await self._require_engine()
                begun = False
                try:
                    async with aclosing(self._events(ask, deadline)) as events:
                        async for event in events:
                            begun = True
                            yield event
                    return
                except _LOST as error:
                    self._forget_engine()
                    if begun or is_last:
                        raise self._translate(error) from None

    async def _events(self, ask: Ask, deadline: float) -> AsyncGenerator[AnswerEvent, None]:
        response = self._engine.options(stream=True).stream.remote(ask)
        ended = False
        try:
            while not ended:
                event = await asyncio.wait_for(anext(response), max(0.0, deadline - time.monotonic()))
                self._heard = time.monotonic()
                ended = isinstance(event, Done)
                yield event
        except asyncio.TimeoutError:
            raise self._late() from None
        except _LOST:
            raise
        except Exception as error:
            raise self._translate(error) from None
        finally:
            if not ended:
                response.cancel()

    async def retrieve(self, question: str, top_k: int, where: str | None) -> RetrieveReply:
        reply: RetrieveReply = await self._call("retrieve", question, top_k, where)
        return reply

    async def _require_engine(self) -> None:
        """Let a request wait for the engine for some seconds, while none has been reached yet.

        Raises:
            ApiError: 503 while no engine has been reached since the start, or since the last one was lost.
        """
        if self._contact is None:
            self._contact = asyncio.create_task(self._describe())
        contact = self._contact
        await asyncio.wait({contact}, timeout=_FIRST_CONTACT_S)
        if not contact.done():
            raise not_ready()
        error = None if contact.cancelled() else contact.exception()
        if contact.cancelled() or error is not None:
            self._contact = None
            raise self._translate(error) if isinstance(error, Exception) else not_ready()

    async def _describe(self) -> Health:
        health: Health = await self._engine.describe.remote()
        return health

    async def _call(self, method: str, *args: Any) -> Any:
        deadline = time.monotonic() + self._config.limits.request_timeout_s
        for is_last in (False, True):
            await self._require_engine()
            response = getattr(self._engine, method).remote(*args)
            try:
                reply = await asyncio.wait_for(response, max(0.0, deadline - time.monotonic()))
            except (asyncio.TimeoutError, asyncio.CancelledError) as error:
                # Too late, or the client has left: the request gives up its place in the batch that it waits for.
                response.cancel()
                if isinstance(error, asyncio.CancelledError):
                    raise
                raise self._late() from None
            except _LOST as error:
                self._forget_engine()
                if is_last:
                    raise self._translate(error) from None
            except Exception as error:
                raise self._translate(error) from None
            else:
                self._heard = time.monotonic()
                return reply
        raise AssertionError("unreachable")

    def _forget_engine(self) -> None:
        """Serve replaces the replica; until another one has answered, clients are told to wait."""
        self._contact = self._known = None

    def _late(self) -> ApiError:
        return ApiError(504, f"no answer within {self._config.limits.request_timeout_s:g} s")

    def _translate(self, error: Exception) -> ApiError:
        if isinstance(error, _LOST):
            self._forget_engine()
            return not_ready()
        if isinstance(error, BackPressureError):
            return overloaded(self._flow.retry_after_s())
        return _translate(error)


class RemoteWriter:
    """`DocumentWriter` over a `Writer`'s handle. A change that does not answer is not asked for again."""

    def __init__(self, writer: DeploymentHandle, timeout_s: float) -> None:
        self._handle = writer
        self._timeout_s = timeout_s

    async def add(self, request: DocumentsRequest) -> DocumentsReply:
        reply: DocumentsReply = await self._call("add", request)
        return reply

    async def remove(self, request: RemoveRequest) -> RemoveReply:
        reply: RemoveReply = await self._call("remove", request)
        return reply

    async def _call(self, method: str, request: DocumentsRequest | RemoveRequest) -> Any:
        try:
            return await asyncio.wait_for(getattr(self._handle, method).remote(request), self._timeout_s)
        except asyncio.TimeoutError:
            raise ApiError(504, f"no word within {self._timeout_s:g} s; the change may still be made") from None
        except _LOST:
            raise ApiError(503, "the writer was lost; the change may have been made", headers=SOON) from None
        except Exception as error:
            raise _translate(error) from None


def _translate(error: Exception) -> ApiError:
    if isinstance(error, BackPressureError):
        return overloaded()
    cause: BaseException = error
    while isinstance(cause, RayTaskError):
        cause = cause.cause
    return api_error(cause)
