"""OpenAI's own Python client against the routes, over a made-up engine. No Ray, no model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

import httpx
import openai
import pytest

from clara_dist.config.http import AnswerReply, Health, RetrieveReply, Source, Timings, Usage
from clara_dist.config.serve import LimitsConfig, ServeConfig
from clara_dist.distributed.serve_errors import overloaded
from clara_dist.distributed.serve_guard import ApiKeys
from clara_dist.distributed.serve_http import build_api
from clara_dist.distributed.serve_messages import AnswerEvent, Ask, Done, Found
from clara_dist.distributed.serve_metrics import MeasuredAnswers, ServeMetrics
from clara_dist.inference.engine import Piece, Sampling

ResultT = TypeVar("ResultT")

LIMITS = LimitsConfig(max_question_chars=50, max_top_k=7, max_tokens=9)
CONFIG = ServeConfig(model="m", store="s", model_name="lighthouse", top_k=3, max_tokens=5, limits=LIMITS)
SOURCE = Source(doc_id="d1", parent_id="d1", title="Title", score=0.5, text="In 1871.")
TIMINGS = Timings(queue=0.1, reason=0.2, retrieve=0.3, generate=0.4, total=1.0)
MESSAGES: Any = [{"role": "user", "content": "When?"}]


class FakeEngine:
    """Says "1871" in two pieces, or raises at the given event; remembers what it was asked."""

    def __init__(self, error: Exception | None = None, at: int = 0) -> None:
        self.error = error
        self.at = at
        self.asked: list[Ask] = []
        self.closed = 0

    async def health(self) -> Health:
        return Health(model_version="abc", store_version=2, n_documents=4)

    async def retrieve(self, question: str, top_k: int, where: str | None) -> RetrieveReply:
        raise AssertionError("not asked for here")

    async def answer(self, ask: Ask) -> AnswerReply:
        self.asked.append(ask)
        if self.error:
            raise self.error
        return AnswerReply(
            answer="1871",
            finish_reason="stop",
            sources=[SOURCE],
            timings=TIMINGS,
            usage=Usage(prompt_tokens=7, completion_tokens=3),
            model_version="abc",
            store_version=2,
        )

    async def stream(self, ask: Ask) -> AsyncGenerator[AnswerEvent, None]:
        self.asked.append(ask)
        events = [
            Found((SOURCE,), TIMINGS, 7, "abc", 2),
            Piece("18", 1),
            Piece("", 1),
            Piece("71", 1, "stop"),
            Done("stop", 3, TIMINGS),
        ]
        try:
            for i, event in enumerate(events):
                if self.error and i == self.at:
                    raise self.error
                yield event
        finally:
            self.closed += 1


def run(
    engine: FakeEngine, talk: Callable[[openai.AsyncOpenAI], Awaitable[ResultT]], keys: str = "", key: str = "none"
) -> ResultT:
    """Let OpenAI's client talk to a fresh app."""

    async def main() -> ResultT:
        api = build_api(CONFIG, engine, ApiKeys(keys))
        transport = httpx.ASGITransport(api, client=("127.0.0.1", 1), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport) as http:
            client = openai.AsyncOpenAI(base_url="http://localhost/v1", api_key=key, http_client=http, max_retries=0)
            return await talk(client)

    return asyncio.run(main())


def chat(engine: FakeEngine, **fields: Any) -> Any:
    fields = {"model": "lighthouse", "messages": MESSAGES} | fields
    return run(engine, lambda client: client.chat.completions.create(**fields))


def stream(engine: FakeEngine, **fields: Any) -> list[Any]:
    async def talk(client: openai.AsyncOpenAI) -> list[Any]:
        fields.setdefault("messages", MESSAGES)
        return [
            chunk async for chunk in await client.chat.completions.create(model="lighthouse", stream=True, **fields)
        ]

    return run(engine, talk)


def test_a_chat_is_answered_with_its_sources() -> None:
    engine = FakeEngine()
    reply = chat(engine)
    choice = reply.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "1871", "stop")
    assert (reply.object, reply.model, reply.id[:9]) == ("chat.completion", "lighthouse", "chatcmpl-")
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (7, 3, 10)
    extra = reply.model_extra["clara"]
    assert extra["sources"] == [SOURCE.model_dump()]
    assert (extra["timings"]["reason"], extra["store_version"], extra["unread_messages"]) == (0.2, 2, 0)
    assert engine.asked == [Ask("When?", 3, Sampling(max_tokens=5))]


def test_a_stream_begins_with_its_sources_and_ends_with_its_usage() -> None:
    chunks = stream(FakeEngine(), stream_options={"include_usage": True})
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    first, *middle, last, usage = chunks
    assert first.choices[0].delta.role == "assistant"
    assert first.model_extra["clara"]["sources"][0]["doc_id"] == "d1"
    assert [chunk.choices[0].delta.content for chunk in middle] == ["18", "71"]
    assert all(chunk.choices[0].finish_reason is None for chunk in (first, *middle))
    assert last.choices[0].finish_reason == "stop"
    assert last.model_extra["clara"]["timings"]["total"] == 1.0
    assert usage.choices == []
    assert (usage.usage.prompt_tokens, usage.usage.completion_tokens) == (7, 3)
    assert len(stream(FakeEngine())) == len(chunks) - 1


def test_what_is_sent_is_what_openai_documents() -> None:
    async def talk(client: openai.AsyncOpenAI) -> str:
        body = {"model": "lighthouse", "messages": MESSAGES, "stream": True}
        response = await client._client.post("http://localhost/v1/chat/completions", json=body)
        assert response.headers["content-type"].startswith("text/event-stream")
        return response.text

    lines = run(FakeEngine(), talk).split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(line.removeprefix("data: "))["model"] == "lighthouse" for line in lines[:-2])


def test_completions_with_and_without_a_stream() -> None:
    async def talk(client: openai.AsyncOpenAI) -> tuple[Any, str]:
        whole = await client.completions.create(model="lighthouse", prompt="When?", max_tokens=2)
        chunks = await client.completions.create(model="lighthouse", prompt=["When?"], stream=True)
        return whole, "".join([chunk.choices[0].text async for chunk in chunks])

    engine = FakeEngine()
    whole, streamed = run(engine, talk)
    assert (whole.object, whole.choices[0].text, streamed) == ("text_completion", "1871", "1871")
    assert [ask.sampling.max_tokens for ask in engine.asked] == [2, 5]


def test_sampling_and_options_are_passed_on() -> None:
    engine = FakeEngine()
    options = {"temperature": 0.7, "top_p": 0.9, "seed": 5, "stop": ["\n", "."], "max_completion_tokens": 4}
    clara = {"top_k": 7, "where": "year = 1871"}
    chat(engine, **options, extra_body={"clara": clara}, user="somebody", n=1, frequency_penalty=0)
    assert engine.asked == [Ask("When?", 7, Sampling(4, 0.7, 0.9, 5, ("\n", ".")), "year = 1871")]


def test_only_the_last_message_is_read_and_the_reply_says_so() -> None:
    engine = FakeEngine()
    system = {"role": "system", "content": "Be brief."}
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    parts = {"role": "user", "content": [{"type": "text", "text": "Where"}, {"type": "text", "text": "is it?"}]}
    reply = chat(engine, messages=[system, *turns, parts])
    assert engine.asked[0].question == "Where\nis it?"
    assert reply.model_extra["clara"]["unread_messages"] == 3


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"n": 2}, "n is not supported"),
        ({"logprobs": True}, "logprobs is not supported"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format is not supported"),
        ({"frequency_penalty": 0.5}, "frequency_penalty is not supported"),
        ({"logit_bias": {"5": 1}}, "logit_bias is not supported"),
        ({"max_tokens": 10}, "max_tokens: 10 tokens, at most 9"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"extra_body": {"clara": {"top_k": 8}}}, "top_k: 8 documents, at most 7"),
        ({"extra_body": {"clara": {"topk": 1}}}, "clara.topk"),
        ({"extra_body": {"best_friend": 1}}, "best_friend"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, "the last of messages must be the user's"),
        ({"messages": [{"role": "user", "content": " "}]}, "must not be empty"),
        ({"messages": [{"role": "user", "content": "x" * 51}]}, "question: 51 characters"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]}, "messages.0"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_what_has_no_meaning_here_is_refused_by_name(fields: dict[str, Any], named: str, streamed: bool) -> None:
    if streamed:
        fields = fields | {"stream": True}
    engine = FakeEngine()
    with pytest.raises(openai.BadRequestError, match=named) as caught:
        chat(engine, **fields)
    assert caught.value.type == "invalid_request_error"
    assert engine.asked == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop": 3}, "stop"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content"),
        ({"extra_body": {"clara": {"top_k": []}}}, "clara.top_k"),
    ],
)
def test_the_param_of_an_error_is_a_place_in_the_body(fields: dict[str, Any], param: str) -> None:
    """Not one with the names of types in it, such as pydantic's ``stop.list[str]``."""
    with pytest.raises(openai.BadRequestError) as caught:
        chat(FakeEngine(), **fields)
    assert caught.value.param == param


def test_stream_options_are_for_streams() -> None:
    with pytest.raises(openai.BadRequestError, match="stream_options: only with stream"):
        chat(FakeEngine(), stream_options={"include_usage": True})


def test_metrics_count_what_was_answered_and_what_was_refused() -> None:
    async def talk(client: openai.AsyncOpenAI) -> str:
        fields: Any = {"model": "lighthouse", "messages": MESSAGES}
        await client.chat.completions.create(**fields)
        async for _ in await client.chat.completions.create(**fields, stream=True):
            pass
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(**fields | {"model": "gpt"})
        with pytest.raises(openai.NotFoundError):
            await client.get("/nowhere", cast_to=httpx.Response)
        return (await client._client.get("http://localhost/metrics")).text

    lines = run(FakeEngine(), talk).splitlines()
    assert 'clara_requests_total{path="/v1/chat/completions",status="200"} 2.0' in lines
    assert 'clara_requests_total{path="/v1/chat/completions",status="404"} 1.0' in lines
    assert 'clara_requests_total{path="other",status="404"} 1.0' in lines
    assert "clara_prompt_tokens_total 14.0" in lines
    assert "clara_completion_tokens_total 6.0" in lines
    assert 'clara_stage_seconds_sum{stage="reason"} 0.4' in lines
    assert 'clara_request_seconds_count{path="/v1/chat/completions"} 3.0' in lines


def test_who_leaves_a_stream_leaves_the_engine() -> None:
    engine = FakeEngine()

    async def talk(client: openai.AsyncOpenAI) -> None:
        backend = MeasuredAnswers(engine, ServeMetrics())
        events = backend.stream(Ask("When?", 1, Sampling(5)))
        await anext(events)
        await events.aclose()

    run(engine, talk)
    assert engine.closed == 1


def test_models_are_listed_and_others_are_unknown() -> None:
    async def talk(client: openai.AsyncOpenAI) -> Any:
        with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
            await client.models.retrieve("gpt")
        with pytest.raises(openai.NotFoundError, match="this server has 'lighthouse'"):
            await client.chat.completions.create(model="gpt", messages=MESSAGES)
        listed = [model.id async for model in client.models.list()]
        return listed, (await client.models.retrieve("lighthouse")).owned_by

    assert run(FakeEngine(), talk) == (["lighthouse"], "clara_dist")


def test_errors_are_those_that_the_client_knows() -> None:
    with pytest.raises(openai.RateLimitError) as caught:
        chat(FakeEngine(overloaded()))
    assert caught.value.response.headers["retry-after"] == "1"
    with pytest.raises(openai.RateLimitError):
        stream(FakeEngine(overloaded()))
    with pytest.raises(openai.InternalServerError, match="internal error"):
        stream(FakeEngine(ZeroDivisionError("secret")))
    with pytest.raises(openai.AuthenticationError):
        run(FakeEngine(), lambda client: client.models.retrieve("lighthouse"), keys="one", key="two")
    assert (
        run(FakeEngine(), lambda client: client.models.retrieve("lighthouse"), keys="one", key="one").id == "lighthouse"
    )


def test_an_error_in_the_middle_of_a_stream_is_told_there() -> None:
    engine = FakeEngine(ZeroDivisionError("secret"), at=2)
    with pytest.raises(openai.APIError, match="internal error") as caught:
        stream(engine)
    assert "secret" not in str(caught.value)
    assert engine.closed == 1
