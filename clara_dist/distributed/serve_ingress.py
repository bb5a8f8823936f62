"""The ingress deployment: HTTP in front of the engine. Loads neither torch nor transformers."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from clara_dist.config.http import AnswerReply, Health, RetrieveReply
from clara_dist.config.serve import ServeConfig
from clara_dist.distributed.serve_errors import ApiError, api_error, not_ready, overloaded
from clara_dist.distributed.serve_guard import ApiKeys
from clara_dist.distributed.serve_http import build_api

# How long a request waits for an engine that is being loaded, before it is told so.
_FIRST_CONTACT_S = 1.0


class Ingress:
    """`Backend` over an engine's handle. A plain class: Serve wraps it in `serve_app`."""

    def __init__(self, config: ServeConfig, engine: DeploymentHandle) -> None:
        self._config = config
        self._keys = ApiKeys.from_environment(config)
        self._engine = engine
        self._contact: asyncio.Task[Health] | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve's hook for an app that is built in the replica, around this object."""
        return build_api(self._config, self, self._keys)

    async def health(self) -> Health:
        """What the engine serves.

        Raises:
            ApiError: 503 while no engine has been reached since the start, or since the last one was lost.
        """
        if self._contact is None:
            self._contact = asyncio.create_task(self._describe())
        contact = self._contact
        await asyncio.wait({contact}, timeout=_FIRST_CONTACT_S)
        if not contact.done():
            raise not_ready()
        if contact.cancelled() or contact.exception() is not None:
            self._contact = None
            raise not_ready()
        return contact.result()

    async def answer(self, question: str, top_k: int, max_tokens: int) -> AnswerReply:
        reply: AnswerReply = await self._call("answer", question, top_k, max_tokens)
        return reply

    async def retrieve(self, question: str, top_k: int) -> RetrieveReply:
        reply: RetrieveReply = await self._call("retrieve", question, top_k)
        return reply

    async def _describe(self) -> Health:
        health: Health = await self._engine.describe.remote()
        return health

    async def _call(self, method: str, *args: Any) -> Any:
        await self.health()
        timeout_s = self._config.limits.request_timeout_s
        response = getattr(self._engine, method).remote(*args)
        try:
            return await asyncio.wait_for(response, timeout_s)
        except (asyncio.TimeoutError, asyncio.CancelledError) as error:
            # Too late, or the client has left: the request gives up its place in the batch that it waits for.
            response.cancel()
            if isinstance(error, asyncio.CancelledError):
                raise
            raise ApiError(504, f"no answer within {timeout_s:g} s") from None
        except Exception as error:
            raise self._translate(error) from None

    def _translate(self, error: Exception) -> ApiError:
        if isinstance(error, BackPressureError):
            return overloaded()
        if isinstance(error, (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError)):
            # Serve replaces the replica; until the new one has answered, clients are told to wait.
            self._contact = None
            return not_ready()
        cause: BaseException = error
        while isinstance(cause, RayTaskError):
            cause = cause.cause
        return api_error(cause)
