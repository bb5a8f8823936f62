"""A client of the HTTP interface: what `clara-dist ask` uses. Imports no ray and no torch."""

from __future__ import annotations

from types import TracebackType
from typing import Any, TypeVar

import httpx

from clara_dist.config.http import AnswerReply, ErrorReply, Health, Reply, RetrieveReply
from clara_dist.config.serve import is_loopback
from clara_dist.errors import OverloadedError, RequestError

ReplyT = TypeVar("ReplyT", bound=Reply)


class Client:
    """Asks a server. Usable as a context manager; reuses its connection.

    Args:
        url: The server, such as ``http://127.0.0.1:8000``.
        api_key: Sent as a bearer token.
        timeout_s: Longest wait for an answer.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = 120.0) -> None:
        try:
            host = httpx.URL(url).host
        except httpx.InvalidURL as error:
            raise RequestError("the server's URL is not valid", got=url, expected="http://HOST:PORT") from error
        self.url = url
        # A proxy of the environment must not stand between a machine and itself.
        self._http = httpx.Client(
            base_url=url,
            headers={} if api_key is None else {"Authorization": f"Bearer {api_key}"},
            timeout=timeout_s,
            trust_env=not is_loopback(host),
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def ask(
        self, question: str, *, top_k: int | None = None, max_tokens: int | None = None, where: str | None = None
    ) -> AnswerReply:
        """Answer a question; what is None takes the server's default.

        Raises:
            OverloadedError: The server is full or still loading.
            RequestError: It refuses the question, cannot be reached, or is no clara_dist server.
        """
        fields = {"question": question, "top_k": top_k, "max_tokens": max_tokens, "where": where}
        return self._post("/v1/answers", AnswerReply, **fields)

    def retrieve(self, question: str, *, top_k: int | None = None, where: str | None = None) -> RetrieveReply:
        """The documents that an answer would rest on; raises as `ask` does."""
        return self._post("/v1/retrieve", RetrieveReply, question=question, top_k=top_k, where=where)

    def health(self) -> Health:
        """What is served; raises as `ask` does."""
        return self._send(self._http.build_request("GET", "/healthz"), Health)

    def _post(self, path: str, kind: type[ReplyT], **fields: Any) -> ReplyT:
        body = {name: value for name, value in fields.items() if value is not None}
        return self._send(self._http.build_request("POST", path, json=body), kind)

    def _send(self, request: httpx.Request, kind: type[ReplyT]) -> ReplyT:
        try:
            response = self._http.send(request)
        except httpx.TimeoutException as error:
            raise RequestError(f"no answer from {self.url} in time", got=type(error).__name__) from error
        except httpx.HTTPError as error:
            hint = "start a server with clara-dist serve, or check the URL"
            raise RequestError(f"cannot reach a server at {self.url}", got=error, hint=hint) from error
        try:
            if response.is_success:
                return kind.model_validate_json(response.content)
            message = ErrorReply.model_validate_json(response.content).error.message
        except ValueError:
            raise RequestError(
                f"{self.url} does not answer as a clara_dist server does",
                got=f"status {response.status_code}: {response.text[:200]}",
            ) from None
        refusal = OverloadedError if response.status_code in (429, 503) else RequestError
        raise refusal(f"the server answered {response.status_code}", got=message)
