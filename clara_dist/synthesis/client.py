"""A client of OpenAI-compatible chat completions that bears with a busy endpoint and counts what it costs."""

from __future__ import annotations

import asyncio
import email.utils
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import httpx
from pydantic import BaseModel, Field, ValidationError

from clara_dist.config.serve import is_loopback
from clara_dist.config.synthesize import EndpointConfig
from clara_dist.errors import ConfigError, EndpointError, SynthesisError
from clara_dist.synthesis.limiter import Limiter
from clara_dist.synthesis.timing import Timing
from clara_dist.synthesis.usage import Meter, Usage

_RETRIED = frozenset({408, 409, 425, 429})
# No other document would fare better: key, payment, permission, path or model.
_FATAL = frozenset({401, 402, 403, 404, 405})
_EXCERPT_CHARS = 300
# Of English text. Only for the limit on tokens a minute, and only until the endpoint says the true number.
_BYTES_PER_TOKEN = 4
_UNBOUNDED_ANSWER_TOKENS = 1024

Failure = Literal["rate_limited", "timeouts", "connection_errors", "server_errors", "refused"]


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer; ``usage`` is that of all requests that it took."""

    text: str
    finish_reason: str | None
    usage: Usage


@dataclass(frozen=True, slots=True)
class _Failed:
    """A request without an answer: its kind, what to tell, and how long the endpoint asked to wait."""

    kind: Failure
    reason: str
    retry_after_s: float | None = None
    final: Literal["no", "document", "job"] = "no"


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Tokens(BaseModel):
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(0, ge=0)


class _Answer(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: Any = None


class ChatClient:
    """Asks one endpoint. An async context manager; for one event loop, as its connections are.

    Args:
        config: The endpoint.
        limiter: Shared by all who ask the endpoint; None makes one from ``config``.
        timing: See `Timing`.
        environ: Where the key's variable is looked up; None: this process's environment.

    Raises:
        ConfigError: The API key cannot be read or is none.
    """

    def __init__(
        self,
        config: EndpointConfig,
        *,
        limiter: Limiter | None = None,
        timing: Timing | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._config = config
        self._timing = timing or Timing()
        self._limiter = limiter or Limiter(
            config.max_concurrency, config.requests_per_minute, config.tokens_per_minute, timing=self._timing
        )
        self._key = read_api_key(config, os.environ if environ is None else environ)
        self._meter = Meter()
        self._http = httpx.AsyncClient(
            headers={} if self._key is None else {"Authorization": f"Bearer {self._key}"},
            timeout=httpx.Timeout(config.timeout_s, pool=None),
            limits=httpx.Limits(max_connections=config.max_concurrency),
            # A proxy of the environment must not stand between a machine and itself.
            trust_env=not is_loopback(httpx.URL(config.base_url).host),
        )

    async def __aenter__(self) -> ChatClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    @property
    def usage(self) -> Usage:
        """What all requests so far came to, those of failed and cancelled calls included."""
        return self._meter.usage

    async def complete(self, messages: Sequence[Mapping[str, str]], *, meter: Meter | None = None) -> Completion:
        """One answer, after as many retries as it takes and the settings allow.

        Args:
            messages: As the chat interface has them, ``{role, content}`` each.
            meter: Gets the usage, also where an error is raised.

        Raises:
            EndpointError: The endpoint would refuse every request, or asks for too long a wait.
            SynthesisError: It refuses this one, or did not answer in all retries.
        """
        call = Meter()
        try:
            return await self._complete(self._body(messages), call)
        finally:
            for each in (self._meter, meter):
                if each is not None:
                    each.add(call.usage)

    def count_malformed(self, meter: Meter) -> None:
        """Count an answer whose text was of no use to who asked for it."""
        for each in (self._meter, meter):
            each.add(Usage(malformed=1))

    async def _complete(self, body: dict[str, Any], call: Meter) -> Completion:
        config = self._config
        attempt = 0
        while True:
            if attempt:
                # Full jitter: clients that failed together must not come back together.
                bound = min(config.max_backoff_s, config.backoff_s * 2 ** (attempt - 1))
                await self._timing.sleep(self._timing.uniform(0.0, bound))
            result = await self._send(body, call, retry=attempt > 0)
            if isinstance(result, _Answer):
                choice = result.choices[0]
                return Completion(choice.message.content or "", choice.finish_reason, call.usage)
            attempt += 1
            if result.final != "no" or attempt > config.max_retries:
                raise self._error_of(result)
            if result.retry_after_s is not None:
                self._limiter.pause(result.retry_after_s)

    def _error_of(self, failed: _Failed) -> SynthesisError:
        config = self._config
        if failed.final == "job":
            key = config.api_key_file or config.api_key_env
            return EndpointError(
                f"{config.base_url} cannot be worked with",
                got=failed.reason,
                hint=f"check base_url, model ({config.model}), the API key ({key}) and its quota",
            )
        if failed.final == "document":
            return SynthesisError(f"{config.base_url} refuses a request", got=failed.reason)
        return SynthesisError(
            f"no answer from {config.base_url} in {config.max_retries + 1} requests",
            got=failed.reason,
            hint="raise max_retries or timeout_s, or lower max_concurrency or requests_per_minute",
        )

    async def _send(self, body: dict[str, Any], call: Meter, *, retry: bool) -> _Answer | _Failed:
        """Send a request once it is admitted, and count it."""
        async with self._limiter.admitted(_estimated_tokens(body)) as ticket:
            # Before the sending: a request that is cancelled under way was sent, too.
            call.add(Usage(requests=1, retries=int(retry)))
            result = await self._post(body)
            if isinstance(result, _Failed):
                call.add(Usage(**{result.kind: 1}))
                if result.kind in ("rate_limited", "refused"):
                    ticket.settle(0)
                return result
            tokens = _tokens_of(result)
            if tokens is None:
                call.add(Usage(without_usage=1))
            else:
                call.add(Usage(prompt_tokens=tokens.prompt_tokens, completion_tokens=tokens.completion_tokens))
                ticket.settle(tokens.prompt_tokens + tokens.completion_tokens)
            return result

    async def _post(self, body: dict[str, Any]) -> _Answer | _Failed:
        url = f"{self._config.base_url}/chat/completions"
        try:
            # httpx bounds each read; an endpoint that sends a byte now and then would hold it for ever.
            response = await asyncio.wait_for(self._http.post(url, json=body), self._config.timeout_s)
        except (asyncio.TimeoutError, httpx.TimeoutException):
            return _Failed("timeouts", f"no answer in {self._config.timeout_s:g} s")
        except httpx.HTTPError as error:
            return _Failed("connection_errors", self._safe(f"{type(error).__name__}: {error}"))
        if not response.is_success:
            return self._failure_of(response)
        try:
            return _Answer.model_validate_json(response.content)
        except ValidationError:
            return _Failed("server_errors", self._safe(f"no chat completion: {response.text}"))

    def _failure_of(self, response: httpx.Response) -> _Failed:
        status = response.status_code
        reason = self._safe(f"status {status}: {response.text}")
        if status not in _RETRIED and status < 500:
            return _Failed("refused", reason, final="job" if status in _FATAL or status < 400 else "document")
        kinds: dict[int, Failure] = {429: "rate_limited", 408: "timeouts"}
        kind = kinds.get(status, "server_errors")
        wait = _retry_after_s(response.headers.get("retry-after"), self._timing.wall())
        if wait is not None and wait > self._config.max_retry_after_s:
            limit = self._config.max_retry_after_s
            return _Failed(kind, f"asks to wait {wait:.0f} s, max_retry_after_s is {limit:g}; {reason}", final="job")
        if status == 429 and "insufficient_quota" in response.text:
            return _Failed(kind, reason, final="job")
        return _Failed(kind, reason, wait)

    def _safe(self, text: str) -> str:
        """A short text for an error: endpoints repeat the key that they do not know."""
        text = " ".join(text.split())
        return (text if self._key is None else text.replace(self._key, "***"))[:_EXCERPT_CHARS]

    def _body(self, messages: Sequence[Mapping[str, str]]) -> dict[str, Any]:
        config = self._config
        body: dict[str, Any] = {"model": config.model, "messages": [dict(message) for message in messages]}
        if config.temperature is not None:
            body["temperature"] = config.temperature
        if config.max_tokens is not None:
            body["max_tokens"] = config.max_tokens
        if config.json_mode == "json_object":
            body["response_format"] = {"type": "json_object"}
        return {**body, **config.extra_body}


def read_api_key(config: EndpointConfig, environ: Mapping[str, str]) -> str | None:
    """The key that the settings name; None where the variable is not set.

    Raises:
        ConfigError: The file cannot be read, or what it or the variable holds is no key. The message never has it.
    """
    if config.api_key_file is None:
        source, key = f"the variable {config.api_key_env}", environ.get(config.api_key_env, "")
    else:
        source = config.api_key_file
        try:
            key = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the API key file {source}", got=type(error).__name__) from None
        if not key.strip():
            raise ConfigError(f"the API key file {source} is empty")
    key = key.strip()
    if not all("!" <= character <= "~" for character in key):
        raise ConfigError(f"{source} holds no API key", expected="visible ASCII characters on one line")
    return key or None


def _estimated_tokens(body: Mapping[str, Any]) -> float:
    prompt = sum(len(message["content"].encode("utf-8")) for message in body["messages"]) / _BYTES_PER_TOKEN
    return prompt + body.get("max_tokens", body.get("max_completion_tokens", _UNBOUNDED_ANSWER_TOKENS))


def _tokens_of(answer: _Answer) -> _Tokens | None:
    try:
        return _Tokens.model_validate(answer.usage)
    except ValidationError:
        return None


def _retry_after_s(value: str | None, now: float) -> float | None:
    """Seconds of a ``Retry-After`` header, which has seconds or an HTTP date; None without a usable one."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - now
        except ValueError:
            return None
    # Not a number, or a date that has passed.
    return max(seconds, 0.0) if seconds == seconds else None
