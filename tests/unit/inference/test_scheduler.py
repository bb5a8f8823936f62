"""Answers that join and leave a running batch; the oracle decodes each one alone."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest
import torch

from clara_dist.errors import ConfigError, TokenizationError
from clara_dist.inference.engine import Sampling
from clara_dist.inference.scheduler import NewToken, Scheduler
from clara_dist.model.clara import ClaraModel

QUESTIONS = ["Who built the lighthouse at Cape Merrow?", "rain", "Ada Tolliver, an engineer.", "rain gauges", "When?"]


def prompt_of(clara: ClaraModel, i: int) -> tuple[list[int], torch.Tensor]:
    """The i-th question over i % 4 documents."""
    memory_KMD = torch.randn(i % 4, 3, clara.hidden_size, generator=torch.Generator().manual_seed(i))
    return clara.tokenizer.prompt(QUESTIONS[i % len(QUESTIONS)], len(memory_KMD)), memory_KMD


def alone(clara: ClaraModel, i: int, sampling: Sampling) -> list[NewToken]:
    scheduler = Scheduler(clara)
    scheduler.add(*prompt_of(clara, i), sampling)
    found = []
    while not scheduler.is_idle:
        found += scheduler.step()
    return found


def tokens(news: list[NewToken]) -> list[tuple[int, str | None]]:
    return [(new.token_id, new.finish_reason) for new in news]


def test_answers_do_not_depend_on_who_else_is_answered_and_when(clara: ClaraModel) -> None:
    """Twelve answers, greedy and seeded, added and cancelled at random moments."""
    random_ = random.Random(4)
    samplings = [
        Sampling(max_tokens=random_.randint(1, 9), temperature=2.0 * (i % 3 == 0), top_p=0.9, seed=i) for i in range(12)
    ]
    # A random model hardly ever stops: make a token of one answer's middle a stop token.
    clara.tokenizer.stop_ids = clara.tokenizer.stop_ids | {alone(clara, 4, Sampling(max_tokens=6))[3].token_id}
    expected = [alone(clara, i, sampling) for i, sampling in enumerate(samplings)]
    assert {each[-1].finish_reason for each in expected} == {"stop", "length"}

    scheduler = Scheduler(clara, max_rows=3)
    order, got = {}, defaultdict(list)
    cancelled: dict[int, int] = {}
    left = list(range(12))
    most = 0
    while left or not scheduler.is_idle:
        for _ in range(random_.randint(0, 3)):
            if left:
                i = left.pop(0)
                order[scheduler.add(*prompt_of(clara, i), samplings[i])] = i
        if len(order) in (6, 9) and len(cancelled) < 2:
            ticket = list(order)[-3]
            cancelled[ticket] = len(got[ticket])
            scheduler.cancel(ticket)
        most = max(most, scheduler.n_running + scheduler.n_waiting)
        for new in scheduler.step():
            got[new.ticket].append(new)
        assert scheduler.n_running <= 3
    assert most > 3, "some should have waited"
    for ticket, i in order.items():
        whole = tokens(expected[i])
        assert tokens(got[ticket]) == (whole[: cancelled[ticket]] if ticket in cancelled else whole)


def test_turns_go_by_arrival_within_the_budget(clara: ClaraModel) -> None:
    clara.tokenizer.stop_ids = frozenset()
    first, memory = prompt_of(clara, 1)
    room = len(first) + 4
    scheduler = Scheduler(clara, max_batch_tokens=2 * room)
    a = scheduler.add(first, memory, Sampling(max_tokens=4))
    big = scheduler.add(first, memory, Sampling(max_tokens=40))
    small = scheduler.add(first, memory, Sampling(max_tokens=2))
    seen = []
    while not scheduler.is_idle:
        seen.append([new.ticket for new in scheduler.step()])
    # The second is too long to join the first, and the third, which would fit, does not overtake it.
    assert seen == [[a]] * 4 + [[big]] * 40 + [[small]] * 2


def test_a_cancelled_answer_costs_no_further_step(clara: ClaraModel) -> None:
    rows: list[int] = []
    clara.base.base_model.register_forward_hook(
        lambda module, args, kwargs, output: rows.append(kwargs["inputs_embeds"].shape[0]), with_kwargs=True
    )
    scheduler = Scheduler(clara)
    tickets = [scheduler.add(*prompt_of(clara, i), Sampling(max_tokens=8)) for i in range(3)]
    scheduler.step()
    scheduler.cancel(tickets[0])
    scheduler.step()
    scheduler.cancel(tickets[1])
    scheduler.cancel(tickets[2])
    assert scheduler.is_idle
    assert scheduler.step() == []
    scheduler.cancel(tickets[2])  # over already
    assert rows == [3, 2]


def test_the_cache_sheds_padding_that_nobody_needs(clara: ClaraModel) -> None:
    scheduler = Scheduler(clara)
    long, memory = prompt_of(clara, 0)
    scheduler.add(long * 3, torch.cat([memory] * 3), Sampling(max_tokens=2))
    short, memory = prompt_of(clara, 1)
    scheduler.add(short, memory, Sampling(max_tokens=8))
    scheduler.step()
    batch = scheduler._batch
    assert batch is not None
    assert batch.cache.get_seq_length() == 3 * len(long)
    scheduler.step()
    scheduler.step()
    # Its prompt and two answer tokens; the third is not read yet.
    assert batch.cache.get_seq_length() == batch.mask_BL.shape[1] == len(short) + 2


def test_what_cannot_be_answered_is_refused_when_it_is_added(clara: ClaraModel) -> None:
    with pytest.raises(TokenizationError, match="context"):
        Scheduler(clara).add([5, 6], None, Sampling(max_tokens=100_000))
    with pytest.raises(ConfigError, match="positive"):
        Scheduler(clara, max_rows=0)
