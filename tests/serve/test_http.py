"""The HTTP interface over a made-up engine: limits, keys, errors. No Ray, no model."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from clara_dist.config.http import AnswerReply, Health, RetrieveReply, Timings, Usage
from clara_dist.config.serve import LimitsConfig, ServeConfig
from clara_dist.distributed.serve_errors import not_ready, overloaded
from clara_dist.distributed.serve_guard import ApiKeys, RequestGuard
from clara_dist.distributed.serve_http import build_api
from clara_dist.distributed.serve_messages import AnswerEvent, Ask, Done, Found
from clara_dist.errors import ConfigError, FilterError, StoreError, TokenizationError
from clara_dist.inference.engine import Piece, Sampling
from fuzzed_requests import fuzzed_requests

LIMITS = LimitsConfig(max_question_chars=50, max_top_k=7, max_tokens=9, max_body_bytes=300)
CONFIG = ServeConfig(model="m", store="s", top_k=3, max_tokens=5, limits=LIMITS)
TIMINGS = Timings(queue=0.1, reason=0.2, retrieve=0.3, generate=0.4, total=1.0)


class FakeEngine:
    """Answers with what it was asked, or raises."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    async def health(self) -> Health:
        if self.error:
            raise self.error
        return Health(model_version="abc", store_version=2, n_documents=4)

    async def answer(self, ask: Ask) -> AnswerReply:
        if self.error:
            raise self.error
        assert ask.sampling == Sampling(ask.sampling.max_tokens), "greedy"
        return AnswerReply(
            answer=f"{ask.question}|{ask.top_k}|{ask.sampling.max_tokens}" + (f"|{ask.where}" if ask.where else ""),
            finish_reason="stop",
            sources=[],
            timings=TIMINGS,
            model_version="abc",
            store_version=2,
            usage=Usage(prompt_tokens=1, completion_tokens=2),
        )

    async def stream(self, ask: Ask) -> AsyncGenerator[AnswerEvent, None]:
        raise AssertionError(f"{ask}: not asked for here")
        yield

    async def retrieve(self, question: str, top_k: int, where: str | None) -> RetrieveReply:
        raise AssertionError(f"{question} {top_k}: not asked for here")


Asker = Callable[..., httpx.Response]


def asker(
    engine: FakeEngine | None = None, keys: str = "", config: ServeConfig = CONFIG, client: str = "127.0.0.1"
) -> Asker:
    """A function that sends one request to a fresh app."""
    api = build_api(config, engine or FakeEngine(), ApiKeys(keys))

    def ask(method: str = "POST", path: str = "/v1/answers", **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(api, client=(client, 1), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
                return await http.request(method, path, **options)

        return asyncio.run(send())

    return ask


def error_of(response: httpx.Response) -> tuple[int, str | None, str | None]:
    """(status, param, code) of an error, whose body must have exactly OpenAI's fields."""
    error = response.json()["error"]
    assert list(response.json()) == ["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["message"]
    assert "Traceback" not in response.text
    assert ".py" not in response.text
    return response.status_code, error["param"], error["code"]


def test_defaults_are_filled_in_and_given_values_passed_on() -> None:
    assert asker()(json={"question": "who?"}).json()["answer"] == "who?|3|5"
    assert asker()(json={"question": "who?", "top_k": 7, "max_tokens": 9}).json()["answer"] == "who?|7|9"
    assert asker()(json={"question": "q", "top_k": None}).json()["answer"] == "q|3|5"
    assert asker()(json={"question": "q", "where": "a = 1"}).json()["answer"] == "q|3|5|a = 1"


def test_reply_has_all_parts() -> None:
    reply = asker()(json={"question": "x"}).json()
    timings = {"queue": 0.1, "reason": 0.2, "retrieve": 0.3, "first_token": 0.0, "generate": 0.4, "total": 1.0}
    assert reply["timings"] == timings
    assert reply["usage"] == {"prompt_tokens": 1, "completion_tokens": 2}
    assert (reply["model_version"], reply["store_version"]) == ("abc", 2)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "question"),
        ({"question": ""}, "question"),
        ({"question": " \n\t"}, "question"),
        ({"question": "a\0b"}, "question"),
        ({"question": 3}, "question"),
        ({"question": ["x"]}, "question"),
        ({"question": "x" * 51}, "question"),
        ({"question": "x", "top_k": 0}, "top_k"),
        ({"question": "x", "top_k": 8}, "top_k"),
        ({"question": "x", "top_k": True}, "top_k"),
        ({"question": "x", "top_k": "3"}, "top_k"),
        ({"question": "x", "top_k": 10**30}, "top_k"),
        ({"question": "x", "max_tokens": -1}, "max_tokens"),
        ({"question": "x", "max_tokens": 10}, "max_tokens"),
        ({"question": "x", "topk": 3}, "topk"),
        ({"question": "x", "where": ""}, "where"),
        ({"question": "x", "where": {"a": 1}}, "where"),
        ([], None),
        ("question", None),
    ],
)
def test_bad_fields_are_400_and_named(body: Any, param: str | None) -> None:
    assert error_of(asker()(json=body)) == (400, param, "invalid_request")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b'{"question": "' + b"\xe9" + b'"}', b"[" * 200, b"9" * 299, b'{"question": "\\ud800"}'],
)
def test_what_is_no_json_text_is_400(content: bytes) -> None:
    response = asker()(content=content, headers={"Content-Type": "application/json"})
    assert error_of(response)[0] == 400


def test_a_value_is_not_echoed() -> None:
    assert "secret" not in asker()(json={"question": "x", "top_k": "secret"}).text


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""])
def test_other_content_types_are_415(content_type: str) -> None:
    response = asker()(content=json.dumps({"question": "x"}), headers={"Content-Type": content_type})
    assert error_of(response) == (415, None, "unsupported_media_type")


def test_json_with_charset_is_fine() -> None:
    response = asker()(content='{"question": "x"}', headers={"Content-Type": "Application/JSON; charset=utf-8"})
    assert response.status_code == 200


def test_unknown_paths_and_methods() -> None:
    assert error_of(asker()("GET", "/nowhere")) == (404, None, "not_found")
    response = asker()("GET", "/v1/answers")
    assert error_of(response) == (405, None, "method_not_allowed")
    assert response.headers["allow"] == "POST"


def test_body_limit_is_exact_and_holds_without_a_declared_length() -> None:
    async def chunks(total: int) -> AsyncIterator[bytes]:
        body = b'{"question": "x"' + b" " * (total - 17) + b"}"
        for start in range(0, total, 64):
            yield body[start : start + 64]

    headers = {"Content-Type": "application/json"}
    assert asker()(content=chunks(300), headers=headers).status_code == 200
    assert error_of(asker()(content=chunks(301), headers=headers)) == (413, None, "body_too_large")
    declared = json.dumps({"question": "x" * 400})
    assert error_of(asker()(content=declared, headers=headers)) == (413, None, "body_too_large")


def test_reading_stops_at_the_limit() -> None:
    """A body without an end is refused after the first bytes too many; nothing collects it."""
    n_read = 0

    async def endless() -> dict[str, Any]:
        nonlocal n_read
        n_read += 1
        return {"type": "http.request", "body": b"x" * 100, "more_body": True}

    sent: list[Any] = []

    async def collect(message: Any) -> None:
        sent.append(message)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("the app must not be reached")

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/answers",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
    }
    asyncio.run(RequestGuard(app, CONFIG, ApiKeys(""))(scope, endless, collect))
    assert n_read == 4
    assert sent[0]["status"] == 413


def test_a_body_that_does_not_arrive_is_408() -> None:
    async def stuck() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    config = CONFIG.model_copy(update={"limits": LIMITS.model_copy(update={"body_timeout_s": 0.01})})
    response = asker(config=config)(content=stuck(), headers={"Content-Type": "application/json"})
    assert error_of(response) == (408, None, "request_timeout")


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        ("Bearer one", 200),
        ("bearer two", 200),
        ("Bearer One", 401),
        ("Bearer", 401),
        ("Bearer one,two", 401),
        ("Basic one", 401),
        ("one", 401),
        (None, 401),
    ],
)
def test_api_keys(authorization: str | None, status: int) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    response = asker(keys="one, two")(json={"question": "x"}, headers=headers)
    assert response.status_code == status
    if status == 401:
        assert error_of(response) == (401, None, "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"


def test_keys_guard_everything_but_health() -> None:
    ask = asker(keys="one")
    assert ask("GET", "/openapi.json").status_code == 401
    assert ask("GET", "/nowhere").status_code == 401
    assert ask("GET", "/readyz").json() == {"status": "ready"}
    assert ask("GET", "/healthz").json() == {
        "status": "ok",
        "model_version": "abc",
        "store_version": 2,
        "n_documents": 4,
        "missing_shards": 0,
    }


def test_without_a_key_only_loopback_is_answered() -> None:
    assert asker(client="::1")(json={"question": "x"}).status_code == 200
    assert error_of(asker(client="10.0.0.7")(json={"question": "x"}))[0] == 401
    assert asker(keys="k", client="10.0.0.7")(json={"question": "x"}, headers={"Authorization": "Bearer k"}).is_success


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1", 200),
        ("[::1]:8000", 200),
        ("attacker.example:8000", 401),
        ("127.0.0.1.attacker.example", 401),
        ("[::1].attacker.example", 401),
        ("localhost.attacker.example", 401),
        ("", 401),
    ],
)
def test_a_page_whose_name_was_made_to_mean_loopback_is_not_answered(host: str, status: int) -> None:
    assert asker()(json={"question": "x"}, headers={"Host": host}).status_code == status


def test_a_public_server_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    public = CONFIG.model_copy(update={"host": "0.0.0.0"})
    for value in ("", " , "):
        monkeypatch.setenv("CLARA_API_KEY", value)
        with pytest.raises(ConfigError, match="needs an API key"):
            ApiKeys.of(public)
        assert not ApiKeys.of(CONFIG)
    monkeypatch.setenv("CLARA_API_KEY", "k")
    assert ApiKeys.of(public)


@pytest.mark.parametrize(
    ("error", "status", "code", "retry"),
    [
        (overloaded(), 429, "overloaded", "1"),
        (not_ready(), 503, "not_ready", "2"),
        (TokenizationError("the prompt is too long", got="9 tokens"), 400, "invalid_request", None),
        (FilterError("the store has no column 'b'"), 400, "invalid_request", None),
        (StoreError("secret path /srv/x"), 500, "internal_error", None),
        (ZeroDivisionError("secret"), 500, "internal_error", None),
    ],
)
def test_errors_of_the_engine(error: Exception, status: int, code: str, retry: str | None) -> None:
    response = asker(FakeEngine(error))(json={"question": "x"})
    assert error_of(response) == (status, "where" if isinstance(error, FilterError) else None, code)
    assert response.headers.get("retry-after") == retry
    assert "secret" not in response.text


def test_a_limit_below_the_default_is_a_bad_configuration() -> None:
    with pytest.raises(ValueError, match="top_k 5 exceeds its limit 2"):
        ServeConfig(model="m", store="s", limits=LimitsConfig(max_top_k=2))


def test_no_body_is_an_error_of_the_server() -> None:
    """1,500 made-up bodies: each is answered or refused, by an error in OpenAI's shape."""
    statuses: Counter[int] = Counter()

    class Answers(FakeEngine):
        async def retrieve(self, question: str, top_k: int, where: str | None) -> RetrieveReply:
            return RetrieveReply(sources=[], timings=TIMINGS, model_version="abc", store_version=2)

        async def answer(self, ask: Ask) -> AnswerReply:
            return await super().answer(dataclasses.replace(ask, sampling=Sampling(ask.sampling.max_tokens)))

        async def stream(self, ask: Ask) -> AsyncGenerator[AnswerEvent, None]:
            yield Found((), TIMINGS, 1, "abc", 2)
            yield Piece("x", 1, "stop")
            yield Done("stop", 1, TIMINGS)

    async def send() -> None:
        limits = LIMITS.model_copy(update={"max_body_bytes": 65_536})
        api = build_api(CONFIG.model_copy(update={"limits": limits}), Answers(), ApiKeys(""))
        transport = httpx.ASGITransport(api, client=("127.0.0.1", 1), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            for path, body in fuzzed_requests(1500, seed=1):
                response = await http.post(path, content=body, headers={"Content-Type": "application/json"})
                statuses[response.status_code] += 1
                assert response.status_code < 500, (path, body)
                if response.status_code != 200:
                    error_of(response)

    asyncio.run(send())
    assert min(statuses[200], statuses[400]) > 100, statuses
