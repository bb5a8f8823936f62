from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from clara_dist.bench.serve import ServeBench, ServedWorld, Timed, _at_each, _engine_alone, _figures
from clara_dist.errors import ClaraError
from clara_dist.inference.engine import Piece


def test_the_engine_alone_reads_memories_and_text(tmp_path: Path) -> None:
    settings = ServeBench(shape="tiny", n_requests=32, max_tokens=3)
    world = ServedWorld(settings, tmp_path)
    found = _engine_alone(settings, world)
    assert [found[name]["n_requests"] for name in ("at 1", "at 8", "at 32", "text")] == [8, 32, 32, 8]
    for figures in found.values():
        tokens_per_request = figures["tokens_per_s"] / figures["requests_per_s"]
        assert tokens_per_request == pytest.approx(3, abs=1)  # a random model may end an answer
        assert 0 < figures["first_token_s"]["p50"] <= figures["total_s"]["p50"]


def test_figures_are_of_all_answers() -> None:
    answers = [Timed(first_s=0.1 * i, total_s=0.1 * i + 0.4, n_tokens=5, text="") for i in range(1, 101)]
    found = _figures(answers, seconds=50.0)
    assert (found["n_requests"], found["requests_per_s"], found["tokens_per_s"]) == (100, 2.0, 10.0)
    assert found["first_token_s"] == {"p50": pytest.approx(5.05), "p99": pytest.approx(10.0)}
    assert found["between_tokens_s"] == {"p50": pytest.approx(0.1), "p99": pytest.approx(0.1)}


def test_an_answer_that_depends_on_the_others_fails() -> None:
    asked = 0

    async def fickle(question: str) -> AsyncIterator[Piece]:
        nonlocal asked
        asked += 1
        yield Piece("same" if asked <= 8 else "other", 1, "stop")

    with pytest.raises(ClaraError, match="depends on what else is asked"):
        asyncio.run(_at_each(fickle, ServeBench(n_requests=32), [f"q{i}" for i in range(32)]))
