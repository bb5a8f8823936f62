"""The engine from an event loop: many answers at once, streams, cancellation, failures."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from clara_dist.errors import ModelError, RequestError, TokenizationError
from clara_dist.inference.engine import Piece, Sampling
from clara_dist.inference.generator import Generator
from clara_dist.inference.reasoner import Reasoner
from clara_dist.inference.transformers_engine import TransformersEngine
from clara_dist.model.clara import ClaraModel

QUESTIONS = ["Who built the lighthouse at Cape Merrow?", "rain", "Ada Tolliver, an engineer.", "rain gauges"]


@pytest.fixture
def engine(clara: ClaraModel) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(clara, max_rows=5)
    yield engine
    engine.close()
    assert not engine.is_alive


def memories(clara: ClaraModel, i: int) -> np.ndarray:
    random = np.random.default_rng(i)
    return random.standard_normal((1 + i % 3, 3, clara.hidden_size)).astype(np.float16)


def prompt(clara: ClaraModel, i: int) -> list[int]:
    return clara.tokenizer.prompt(QUESTIONS[i % 4], 1 + i % 3)


async def collect(engine: TransformersEngine, clara: ClaraModel, i: int, sampling: Sampling) -> list[Piece]:
    return [piece async for piece in engine.answer(prompt(clara, i), memories(clara, i), sampling)]


def test_sixteen_at_once_get_what_each_would_get_alone(clara: ClaraModel) -> None:
    expected = [
        Generator(clara).generate_ids([prompt(clara, i)], [torch.tensor(memories(clara, i))], max_tokens=3 + i)[0]
        for i in range(16)
    ]
    alone = Reasoner(clara).query(QUESTIONS)
    engine = TransformersEngine(clara, max_rows=5)

    async def one(i: int) -> tuple[list[Piece], np.ndarray]:
        vector = (await engine.reason([QUESTIONS[i % 4]]))[0]
        return await collect(engine, clara, i, Sampling(max_tokens=3 + i)), vector

    async def everybody() -> list[tuple[list[Piece], np.ndarray]]:
        return await asyncio.gather(*(one(i) for i in range(16)))

    found = asyncio.run(everybody())
    stats = engine.stats
    engine.close()
    for i, ((pieces, vector), want) in enumerate(zip(found, expected, strict=True)):
        assert "".join(piece.text for piece in pieces) == want.text
        assert sum(piece.n_tokens for piece in pieces) == want.n_tokens
        assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + [want.finish_reason]
        # Padded to the others' length: 1e-6 of the largest value was measured.
        assert np.abs(vector - alone[i % 4]).max() < 1e-5 * np.abs(alone).max()
    assert (stats.running, stats.waiting) == (0, 0)
    assert stats.completion_tokens == sum(want.n_tokens for want in expected)
    assert stats.prompt_tokens == sum(len(prompt(clara, i)) for i in range(16))


def test_other_work_runs_on_the_models_thread_between_steps(clara: ClaraModel, engine: TransformersEngine) -> None:
    async def both() -> tuple[str, list[Piece]]:
        answer = asyncio.create_task(collect(engine, clara, 0, Sampling(max_tokens=6)))
        name = await engine.run(lambda: threading.current_thread().name)
        with pytest.raises(ZeroDivisionError):
            await engine.run(lambda: 1 // 0)
        return name, await answer

    name, pieces = asyncio.run(both())
    assert name == "engine"
    assert pieces[-1].finish_reason is not None


def test_a_stop_text_ends_an_answer_before_it(clara: ClaraModel, engine: TransformersEngine) -> None:
    whole = "".join(p.text for p in asyncio.run(collect(engine, clara, 1, Sampling(max_tokens=12))))
    assert len(whole) > 6
    stop = whole[4:6]
    pieces = asyncio.run(collect(engine, clara, 1, Sampling(max_tokens=12, stop=("never", stop))))
    assert "".join(piece.text for piece in pieces) == whole[: whole.find(stop)]
    assert pieces[-1].finish_reason == "stop"
    assert engine.stats.running == 0


def test_who_leaves_frees_a_place(clara: ClaraModel) -> None:
    engine = TransformersEngine(clara, max_rows=1)
    clara.tokenizer.stop_ids = frozenset()

    async def leave_and_let_in() -> tuple[Piece, list[Piece]]:
        first = engine.answer(prompt(clara, 0), memories(clara, 0), Sampling(max_tokens=1500))
        seen = await anext(aiter(first))
        waiting = asyncio.create_task(collect(engine, clara, 1, Sampling(max_tokens=2)))
        never = asyncio.create_task(collect(engine, clara, 2, Sampling(max_tokens=1500)))
        await asyncio.sleep(0)
        never.cancel()
        await asyncio.gather(never, return_exceptions=True)
        await first.aclose()
        return seen, await waiting

    seen, pieces = asyncio.run(leave_and_let_in())
    assert seen.finish_reason is None
    assert pieces[-1].finish_reason == "length"
    engine.close()
    stats = engine.stats
    assert (stats.running, stats.waiting) == (0, 0)
    assert stats.completion_tokens < 1500


def test_the_event_loop_runs_while_the_model_does(
    clara: ClaraModel, engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    step = engine._scheduler.step

    def held(*args: Any) -> Any:
        assert go_on.wait(60)
        return step(*args)

    monkeypatch.setattr(engine._scheduler, "step", held)

    async def meanwhile() -> list[Piece]:
        answer = asyncio.create_task(collect(engine, clara, 0, Sampling(max_tokens=2)))
        await asyncio.sleep(0)
        go_on.set()  # only a loop that is not blocked comes here
        return await answer

    assert asyncio.run(meanwhile())[-1].finish_reason == "length"


def test_a_failed_step_fails_who_ran_and_nobody_after(
    clara: ClaraModel, engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(engine._scheduler, "step", fail)
    with pytest.raises(ModelError, match=r"the engine failed(.|\n)*no memory"):
        asyncio.run(collect(engine, clara, 0, Sampling(max_tokens=2)))
    assert asyncio.run(collect(engine, clara, 0, Sampling(max_tokens=2)))[-1].finish_reason == "length"


def test_bad_requests_are_refused_before_they_meet_others(clara: ClaraModel, engine: TransformersEngine) -> None:
    with pytest.raises(TokenizationError, match="context"):
        asyncio.run(collect(engine, clara, 0, Sampling(max_tokens=100_000)))
    with pytest.raises(TokenizationError):
        asyncio.run(engine.reason(["fine", "far too long " * 500]))
    with pytest.raises(RequestError):
        Sampling(max_tokens=1, temperature=-1)


def test_a_closed_engine_answers_nobody(clara: ClaraModel) -> None:
    engine = TransformersEngine(clara)
    engine.close()
    with pytest.raises(ModelError, match="closed"):
        asyncio.run(collect(engine, clara, 0, Sampling(max_tokens=2)))
    with pytest.raises(ModelError, match="closed"):
        asyncio.run(engine.reason(["rain"]))
