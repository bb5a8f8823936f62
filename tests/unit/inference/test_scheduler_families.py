"""Continuous batching on every family: attention windows, absolute positions, tied embeddings, odd vocabularies."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from clara_dist.config import ClaraConfig, LoraSettings
from clara_dist.inference.engine import Sampling
from clara_dist.inference.scheduler import Scheduler
from clara_dist.model.clara import ClaraModel
from family_models import FAMILIES, write_base
from tiny_models import randomize_adapters

WORDS = ["who", "built", "the", "lighthouse", "at", "cape", "merrow", "in", "rain", "gauges", "are", "emptied", "nine"]
N = 24
Asked = tuple[list[int], torch.Tensor, Sampling]


def ask(clara: ClaraModel, i: int) -> Asked:
    """1 to 10 words over 0 to 4 documents, up to 40 tokens: beyond the families' attention windows."""
    draw = random.Random(i)
    memory_KMD = torch.randn(draw.randint(0, 4), 2, clara.hidden_size, generator=torch.Generator().manual_seed(i))
    question = " ".join(draw.choices(WORDS, k=draw.randint(1, 10)))
    return clara.tokenizer.prompt(question, len(memory_KMD)), memory_KMD, Sampling(draw.randint(1, 40))


def answers(scheduler: Scheduler, asked: Sequence[Asked], draw: random.Random) -> list[list[int]]:
    """Tokens of each answer; up to four are added before every step."""
    tickets: list[int] = []
    tokens: dict[int, list[int]] = {}
    while len(tickets) < len(asked) or not scheduler.is_idle:
        for each in asked[len(tickets) : len(tickets) + draw.randint(0, 4)]:
            tickets.append(scheduler.add(*each))
            tokens[tickets[-1]] = []
        for new in scheduler.step():
            tokens[new.ticket].append(new.token_id)
    return [tokens[ticket] for ticket in tickets]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_those_of_one_at_a_time(family: str, tmp_path: Path) -> None:
    base = write_base(family, tmp_path)
    config = ClaraConfig(base_model=str(base), n_memory_tokens=2, doc_max_tokens=64, lora=LoraSettings(r=4))
    clara = ClaraModel.from_base(config)
    randomize_adapters(clara)
    clara.fuse_for_serving()
    asked = [ask(clara, i) for i in range(N)]
    draw = random.Random(3)
    alone = [answers(Scheduler(clara, max_rows=1), [each], draw)[0] for each in asked]
    assert sum(map(len, alone)) > 10 * N
    for limits in ({"max_rows": N}, {"max_rows": 7}, {"max_rows": N, "max_batch_tokens": 400}):
        order = draw.sample(range(N), N)
        found = answers(Scheduler(clara, **limits), [asked[i] for i in order], draw)
        assert found == [alone[i] for i in order]
