from __future__ import annotations

import asyncio
import email.utils
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from clara_dist.config.synthesize import EndpointConfig
from clara_dist.errors import ConfigError, EndpointError, SynthesisError
from clara_dist.synthesis import ChatClient, Completion, Meter, Usage
from clara_dist.synthesis.client import read_api_key
from fake_time import FakeTime
from openai_stub import (
    HANG,
    RESET,
    SERVER_ERROR,
    Behaviour,
    Call,
    Reply,
    Stub,
    rate_limited,
    refusal,
    scripted,
    serving,
)

FINE = Reply("fine, thank you")
MESSAGES = [{"role": "user", "content": "How do you do?"}]  # 4 words, so 4 tokens; the answer has 3
ANSWERED = Usage(requests=1, prompt_tokens=4, completion_tokens=3)
KEY = "sk-secret-0123456789"
ResultT = TypeVar("ResultT")


def fine(call: Call) -> Reply:
    return FINE


def with_client(
    behaviour: Behaviour, work: Callable[[ChatClient], Awaitable[ResultT]], time: FakeTime, **settings: Any
) -> tuple[ResultT, Stub]:
    async def main(url: str) -> ResultT:
        config = EndpointConfig(base_url=url, model="tiny", **{"api_key_env": "STUB_KEY", **settings})
        async with ChatClient(config, timing=time.timing) as client:
            return await work(client)

    with serving(behaviour) as stub:
        return asyncio.run(main(stub.url)), stub


def ask(*replies: Reply, time: FakeTime | None = None, **settings: Any) -> tuple[Completion, Stub]:
    return with_client(
        scripted(*replies, then=fine), lambda client: client.complete(MESSAGES), time or FakeTime(), **settings
    )


def refused(*replies: Reply, time: FakeTime | None = None, **settings: Any) -> tuple[SynthesisError, Usage, Stub]:
    """The error of a request that fails, and what the client had counted by then."""

    async def fail(client: ChatClient) -> tuple[SynthesisError, Usage]:
        meter = Meter()
        with pytest.raises(SynthesisError) as caught:
            await client.complete(MESSAGES, meter=meter)
        assert client.usage == meter.usage
        return caught.value, meter.usage

    (error, usage), stub = with_client(scripted(*replies, then=fine), fail, time or FakeTime(), **settings)
    return error, usage, stub


def test_a_request_says_what_the_settings_say() -> None:
    extra = {"seed": 3, "chat_template_kwargs": {"enable_thinking": False}}
    done, stub = ask(temperature=0.25, max_tokens=17, json_mode="json_object", extra_body=extra)
    assert done == Completion("fine, thank you", "stop", ANSWERED)
    assert stub.calls[0].body == {
        "model": "tiny",
        "messages": MESSAGES,
        "temperature": 0.25,
        "max_tokens": 17,
        "response_format": {"type": "json_object"},
        **extra,
    }
    assert "authorization" not in stub.calls[0].headers


def test_what_is_not_set_is_not_sent() -> None:
    _, stub = ask(temperature=None, max_tokens=None)
    assert stub.calls[0].body == {"model": "tiny", "messages": MESSAGES}


def test_backs_off_exponentially_up_to_a_bound() -> None:
    time = FakeTime()
    done, stub = ask(*[rate_limited()] * 3, *[SERVER_ERROR] * 2, time=time, backoff_s=1.5, max_backoff_s=10)
    assert time.slept == [1.5, 3, 6, 10, 10]
    assert done.usage == ANSWERED + Usage(requests=5, retries=5, rate_limited=3, server_errors=2)
    assert stub.statuses == {429: 3, 500: 2, 200: 1}


def test_jitter_is_drawn_from_all_of_the_bound() -> None:
    drawn: list[tuple[float, float]] = []

    async def main(url: str) -> None:
        time = FakeTime()

        def uniform(low: float, high: float) -> float:
            drawn.append((low, high))
            return high / 4

        timing = type(time.timing)(clock=time.timing.clock, sleep=time.timing.sleep, uniform=uniform)
        async with ChatClient(EndpointConfig(base_url=url, model="tiny"), timing=timing) as client:
            await client.complete(MESSAGES)
        assert time.slept == [0.25, 0.5]

    with serving(scripted(SERVER_ERROR, SERVER_ERROR, then=fine)) as stub:
        asyncio.run(main(stub.url))
    assert drawn == [(0, 1), (0, 2)]


@pytest.mark.parametrize(
    ("header", "waits"),
    [
        ("20", 20),
        ("2.5", 2.5),
        (email.utils.formatdate(1_700_000_000 + 45, usegmt=True), 45),
        (email.utils.formatdate(1_700_000_000 - 45, usegmt=True), 1),
        ("-7", 1),
        ("nan", 1),
        ("soon", 1),
    ],
)
def test_waits_as_long_as_it_is_told_and_never_less_than_its_own_backoff(header: str, waits: float) -> None:
    time = FakeTime()
    done, _ = ask(rate_limited(header), time=time, backoff_s=1)
    assert time.now == pytest.approx(waits)
    assert done.usage == ANSWERED + Usage(requests=1, retries=1, rate_limited=1)


def test_a_retry_after_of_503_is_heeded_too() -> None:
    time = FakeTime()
    done, _ = ask(Reply(status=503, headers={"Retry-After": "30"}), time=time)
    assert time.now == 30
    assert done.usage == ANSWERED + Usage(requests=1, retries=1, server_errors=1)


def test_a_retry_after_holds_all_others_back() -> None:
    """The first request is told to wait; none of the others may be sent meanwhile."""
    time = FakeTime()
    sent_at: list[float] = []

    def behave(call: Call) -> Reply:
        sent_at.append(time.now)
        return rate_limited("100") if call.index == 0 else FINE

    async def work(client: ChatClient) -> None:
        await asyncio.gather(*(client.complete(MESSAGES) for _ in range(5)))

    with_client(behave, work, time, max_concurrency=1)
    assert sent_at[0] == 0
    assert len(sent_at) == 6
    assert min(sent_at[1:]) >= 100


def test_a_timeout_is_retried_and_counted() -> None:
    done, stub = ask(HANG, timeout_s=1.0)
    assert done.usage == ANSWERED + Usage(requests=1, retries=1, timeouts=1)
    assert len(stub.calls) == 2


def test_a_lost_connection_is_retried_and_counted() -> None:
    done, stub = ask(RESET, RESET)
    assert done.usage == ANSWERED + Usage(requests=2, retries=2, connection_errors=2)
    assert stub.acts == {"reset": 2, "answer": 1}


def test_nobody_there_fails_after_all_retries() -> None:
    with serving() as stub:
        gone = stub.url
    meter = Meter()

    async def main() -> None:
        time = FakeTime()
        async with ChatClient(EndpointConfig(base_url=gone, model="m", max_retries=2), timing=time.timing) as client:
            await client.complete(MESSAGES, meter=meter)

    with pytest.raises(SynthesisError, match="in 3 requests"):
        asyncio.run(main())
    assert meter.usage == Usage(requests=3, retries=2, connection_errors=3)


@pytest.mark.parametrize(("status", "kind"), [(408, "timeouts"), (409, "server_errors"), (425, "server_errors")])
def test_other_passing_failures_are_retried(status: int, kind: str) -> None:
    done, _ = ask(refusal(status))
    assert done.usage == ANSWERED + Usage(requests=1, retries=1, **{kind: 1})


@pytest.mark.parametrize("body", ["<html>hello</html>", "{}", '{"choices": []}', '{"choices": [{"text": "x"}]}', "[]"])
def test_an_answer_that_is_no_chat_completion_is_retried(body: str) -> None:
    done, _ = ask(Reply(body=body))
    assert done.usage == ANSWERED + Usage(requests=1, retries=1, server_errors=1)


def test_an_answer_without_tokens_is_counted_as_such() -> None:
    done, stub = ask(Reply("fine", with_usage=False))
    assert done.text == "fine"
    assert done.usage == Usage(requests=1, without_usage=1)
    assert (stub.prompt_tokens, stub.without_usage) == (0, 1)


def test_a_content_of_null_is_an_empty_text() -> None:
    body = '{"choices": [{"message": {"content": null}, "finish_reason": "content_filter"}], "usage": null}'
    done, _ = ask(Reply(body=body))
    assert done == Completion("", "content_filter", Usage(requests=1, without_usage=1))


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_request_ends_its_document_at_once(status: int) -> None:
    error, usage, stub = refused(refusal(status, "context too long"))
    assert type(error) is SynthesisError
    assert "context too long" in str(error)
    assert usage == Usage(requests=1, refused=1)
    assert len(stub.calls) == 1


@pytest.mark.parametrize("status", [301, 401, 402, 403, 404])
def test_what_every_request_would_meet_ends_the_job_at_once(status: int) -> None:
    error, usage, _ = refused(refusal(status))
    assert type(error) is EndpointError
    assert f"status {status}" in str(error)
    assert usage == Usage(requests=1, refused=1)


def test_a_used_up_quota_ends_the_job_at_once() -> None:
    error, usage, _ = refused(rate_limited(code="insufficient_quota"))
    assert type(error) is EndpointError
    assert usage == Usage(requests=1, rate_limited=1)


def test_too_long_a_wait_ends_the_job() -> None:
    error, usage, _ = refused(rate_limited("86400"), max_retry_after_s=300)
    assert type(error) is EndpointError
    assert "86400 s" in str(error)
    assert usage == Usage(requests=1, rate_limited=1)


def test_the_last_failure_is_told_after_all_retries() -> None:
    error, usage, stub = refused(*[SERVER_ERROR] * 9, max_retries=4)
    assert type(error) is SynthesisError
    assert "boom" in str(error)
    assert usage == Usage(requests=5, retries=4, server_errors=5)
    assert len(stub.calls) == 5


def test_requests_a_minute_hold_for_retries_too() -> None:
    time = FakeTime()
    done, _ = ask(*[SERVER_ERROR] * 4, time=time, requests_per_minute=2, backoff_s=0.5)
    assert done.usage.requests == 5
    assert time.now >= 120


def test_as_many_at_a_time_as_allowed_and_no_more() -> None:
    together = threading.Barrier(3, timeout=60)

    def behave(call: Call) -> Reply:
        together.wait()
        return FINE

    async def work(client: ChatClient) -> Usage:
        await asyncio.gather(*(client.complete(MESSAGES) for _ in range(12)))
        return client.usage

    usage, stub = with_client(behave, work, FakeTime(), max_concurrency=3)
    assert stub.most_at_a_time == 3
    assert usage == Usage(requests=12, prompt_tokens=stub.prompt_tokens, completion_tokens=stub.completion_tokens)


def test_a_cancelled_request_was_sent_and_counts() -> None:
    arrived = threading.Event()

    def behave(call: Call) -> Reply:
        arrived.set()
        return HANG

    async def work(client: ChatClient) -> Usage:
        task = asyncio.create_task(client.complete(MESSAGES))
        await asyncio.to_thread(arrived.wait, 60)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return client.usage

    usage, _ = with_client(behave, work, FakeTime())
    assert usage == Usage(requests=1)


def test_the_key_is_sent_and_never_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("STUB_KEY", f" {KEY}\n")
    caplog.set_level("DEBUG")
    error, _, stub = refused(refusal(401, f"Incorrect API key provided: {KEY}"))
    assert stub.calls[0].headers["authorization"] == f"Bearer {KEY}"
    assert "Incorrect API key provided: ***" in str(error)

    def shown(client: ChatClient) -> Awaitable[str]:
        return asyncio.sleep(0, f"{client!r} {client._http.headers!r} {client._config!r}")

    told, _ = with_client(fine, shown, FakeTime())
    assert KEY not in f"{told} {error} {error!r} {caplog.text}"


def config(**settings: Any) -> EndpointConfig:
    return EndpointConfig(base_url="http://127.0.0.1:1/v1", model="m", **settings)


def test_a_key_comes_from_its_file_before_the_variable(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    environ = {"OPENAI_API_KEY": "other"}
    assert read_api_key(config(api_key_file=str(tmp_path / "key")), environ) == KEY
    assert read_api_key(config(), environ) == "other"
    assert read_api_key(config(), {}) is None


@pytest.mark.parametrize("text", ["", " \n", f"{KEY}\n{KEY}", f"{KEY} x", f"{KEY}\x7f", f"{KEY}é"])
def test_what_is_no_key_is_refused_without_being_told(text: str, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_api_key(config(api_key_file=str(path)), {})
    assert KEY not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot read the API key file"):
        read_api_key(config(api_key_file=str(tmp_path / "none")), {})


def test_the_stub_knows_one_path_only() -> None:
    with serving() as stub:
        reply = httpx.post(f"{stub.url}/completions", json={"messages": []}, trust_env=False)
    assert reply.status_code == 404
