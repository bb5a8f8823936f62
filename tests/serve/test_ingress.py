"""The ingress over a made-up engine handle: what clients are told while an engine loads, is full, late or lost."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import BackPressureError

from clara_dist.config.http import Health, Timings
from clara_dist.config.serve import LimitsConfig, ServeConfig
from clara_dist.distributed import serve_ingress
from clara_dist.distributed.serve_errors import ApiError
from clara_dist.distributed.serve_ingress import Ingress
from clara_dist.distributed.serve_messages import Ask, Done
from clara_dist.errors import StoreError, TokenizationError, UnavailableError
from clara_dist.inference.engine import Sampling

CONFIG = ServeConfig(model="m", store="s", limits=LimitsConfig(request_timeout_s=0.05))
ASK = Ask("x", 1, Sampling(max_tokens=1))
HEALTH = Health(model_version="abc", store_version=1, n_documents=3)


class Response:
    """A `DeploymentResponse`: a value, an error, or never."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome
        self.cancelled = False

    def __await__(self) -> Generator[Any, None, Any]:
        if self.outcome is None:
            yield from asyncio.Event().wait().__await__()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """Hands out the given responses in turn, the last one for ever."""

    def __init__(self, *, describe: list[Any], answer: list[Any] | None = None) -> None:
        self.responses: list[Response] = []
        self.describe = SimpleNamespace(remote=lambda: self._next(describe))
        self.answer = SimpleNamespace(remote=lambda *args: self._next(answer or [None]))

    def _next(self, outcomes: list[Any]) -> Response:
        self.responses.append(Response(outcomes.pop(0) if len(outcomes) > 1 else outcomes[0]))
        return self.responses[-1]


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_ingress, "_FIRST_CONTACT_S", 0.01)
    monkeypatch.setattr(serve_ingress, "_PROBE_S", 0.01)


def refusal(handle: Handle) -> ApiError:
    async def ask() -> None:
        await Ingress(CONFIG, handle).answer(ASK)  # type: ignore[arg-type]

    with pytest.raises(ApiError) as caught:
        asyncio.run(ask())
    return caught.value


def task_error(cause: Exception) -> Exception:
    """As Ray raises the error of another process: a class that is both, whose text is a stack trace."""
    return RayTaskError("answer", "Traceback: secret", cause).as_instanceof_cause()


def test_an_answer_is_passed_on() -> None:
    async def ask() -> Any:
        return await Ingress(CONFIG, Handle(describe=[HEALTH], answer=["reply"])).answer(ASK)  # type: ignore[arg-type]

    assert asyncio.run(ask()) == "reply"


def test_503_while_the_engine_loads() -> None:
    error = refusal(Handle(describe=[None]))
    assert (error.status, error.headers) == (503, {"Retry-After": "2"})


def test_429_when_the_queue_is_full() -> None:
    error = refusal(Handle(describe=[HEALTH], answer=[BackPressureError(5, 4)]))
    assert (error.status, error.headers) == (429, {"Retry-After": "1"})


def test_504_when_it_takes_too_long_and_the_engine_is_told() -> None:
    handle = Handle(describe=[HEALTH], answer=[None])
    assert refusal(handle).status == 504
    assert [response.cancelled for response in handle.responses] == [False, True]


def test_a_client_that_leaves_takes_its_request_along() -> None:
    handle = Handle(describe=[HEALTH], answer=[None])

    async def ask_and_leave() -> None:
        request = asyncio.create_task(Ingress(CONFIG, handle).answer(ASK))  # type: ignore[arg-type]
        while len(handle.responses) < 2:
            await asyncio.sleep(0)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request

    asyncio.run(ask_and_leave())
    assert handle.responses[1].cancelled


def test_a_request_that_loses_its_engine_is_given_to_another_one_once() -> None:
    died = task_error(ActorDiedError())
    handle = Handle(describe=[HEALTH], answer=[died, "reply"])
    assert asyncio.run(Ingress(CONFIG, handle).answer(ASK)) == "reply"  # type: ignore[arg-type]
    assert len(handle.responses) == 4  # each after an engine was met
    assert refusal(Handle(describe=[HEALTH], answer=[died, died, "reply"])).status == 503


def test_a_stream_is_begun_anew_only_if_nothing_of_it_was_sent() -> None:
    died = task_error(ActorDiedError())

    def stream_of(*attempts: list[Any]) -> tuple[list[Any], int]:
        """What a client gets of an engine whose streams end in these ways, and the status that it ends with."""
        streams = iter(attempts)

        class Stream:
            def __init__(self) -> None:
                self._events = iter(next(streams))

            async def __anext__(self) -> Any:
                event = next(self._events)
                if isinstance(event, Exception):
                    raise event
                return event

            def cancel(self) -> None:
                pass

        handle = Handle(describe=[HEALTH])
        handle.options = lambda stream: SimpleNamespace(stream=SimpleNamespace(remote=lambda ask: Stream()))  # type: ignore[attr-defined]

        async def read() -> tuple[list[Any], int]:
            got = []
            try:
                async for event in Ingress(CONFIG, handle).stream(ASK):  # type: ignore[arg-type]
                    got.append(event)
            except ApiError as error:
                return got, error.status
            return got, 200

        return asyncio.run(read())

    done = Done("stop", 1, Timings(queue=0, reason=0, retrieve=0, total=0))
    assert stream_of([died], ["a", done]) == (["a", done], 200)
    assert stream_of(["a", died], ["a", done]) == (["a"], 503)
    assert stream_of([died], [died], ["a", done]) == ([], 503)


def test_a_lost_engine_is_503_until_the_next_one_answers() -> None:
    died = task_error(ActorDiedError())
    ingress = Ingress(
        CONFIG,
        Handle(describe=[HEALTH, HEALTH, None, HEALTH], answer=[died, died, "reply"]),  # type: ignore[arg-type]
    )

    async def ask() -> Any:
        statuses = []
        for _ in range(2):
            with pytest.raises(ApiError) as caught:
                await ingress.answer(ASK)
            statuses.append(caught.value.status)
        assert ingress._contact is not None
        ingress._contact.cancel()
        with pytest.raises(ApiError):
            await ingress.answer(ASK)
        return statuses, await ingress.answer(ASK)

    assert asyncio.run(ask()) == ([503, 503], "reply")


def test_errors_cross_processes_without_their_stack_traces() -> None:
    error = refusal(Handle(describe=[HEALTH], answer=[task_error(TokenizationError("too long", got="9", hint="cut"))]))
    assert (error.status, error.message) == (400, "too long; got: 9; to do: cut")
    nested = task_error(task_error(StoreError("secret")))
    error = refusal(Handle(describe=[HEALTH], answer=[nested]))
    assert error.status == 500
    assert "secret" not in error.message


def test_health_is_asked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that is lost, or has lost its store, is not ready; one that has no time for the probe is."""
    lost = task_error(UnavailableError("1 of 2 parts of the document store do not answer"))
    full = BackPressureError(5, 4)
    ingress = Ingress(CONFIG, Handle(describe=[HEALTH, lost, HEALTH, None, full, full], answer=["reply"]))  # type: ignore[arg-type]

    async def probe() -> int:
        try:
            await ingress.health()
        except ApiError as error:
            return error.status
        return 200

    async def probes() -> list[int]:
        statuses = [await probe() for _ in range(2)]
        await ingress.answer(ASK)  # takes a HEALTH for itself
        statuses += [await probe() for _ in range(2)]
        monkeypatch.setattr(serve_ingress, "_BUSY_S", 0.0)
        return [*statuses, await probe()]

    assert asyncio.run(probes()) == [200, 503, 200, 200, 503]
