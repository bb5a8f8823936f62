from __future__ import annotations

from collections import Counter

import pytest
import torch

from clara_dist.errors import ModelError, TokenizationError
from clara_dist.inference.generator import Generator
from clara_dist.model.clara import ClaraModel

QUESTIONS = ["Who built the lighthouse at Cape Merrow?", "rain", "Ada Tolliver, an engineer.", "rain gauges"]


@pytest.fixture
def memories(clara: ClaraModel) -> list[torch.Tensor]:
    """Ragged: 2, 1, 0 and 3 documents."""
    random = torch.Generator().manual_seed(5)
    return [torch.randn(k, 3, clara.hidden_size, generator=random) for k in (2, 1, 0, 3)]


def greedy_without_cache(clara: ClaraModel, question: str, memory_KMD: torch.Tensor, max_tokens: int) -> list[int]:
    """The oracle: the whole sequence again for every token, one row, no cache, no padding."""
    ids = clara.tokenizer.prompt(question, len(memory_KMD))
    slots = torch.tensor([i for i, token in enumerate(ids) if token in clara.tokenizer.memory_ids], dtype=torch.int64)
    answer: list[int] = []
    while len(answer) < max_tokens:
        with torch.no_grad(), clara.role("generator"):
            embeds = clara.splice(torch.tensor([ids + answer]), slots, memory_KMD)
            token = int(clara.logits(clara.body(embeds)[0, -1]).argmax())
        if token in clara.tokenizer.stop_ids:
            break
        answer.append(token)
    return answer


def stop_where(clara: ClaraModel, answers: list[list[int]]) -> None:
    """A random model hardly ever stops: make a token of one answer's middle a stop token."""
    clara.tokenizer.stop_ids = clara.tokenizer.stop_ids | {answers[1][3]}


def test_greedy_batch_equals_recomputing_each_row_alone(clara: ClaraModel, memories: list[torch.Tensor]) -> None:
    unstopped = [greedy_without_cache(clara, q, m, 12) for q, m in zip(QUESTIONS, memories, strict=True)]
    stop_where(clara, unstopped)
    expected = [greedy_without_cache(clara, q, m, 12) for q, m in zip(QUESTIONS, memories, strict=True)]
    assert len({len(ids) for ids in expected}) > 1, "the rows should finish at different steps"
    generated = Generator(clara).generate(QUESTIONS, memories, max_tokens=12)
    assert [list(g.token_ids) for g in generated] == expected
    assert [g.text for g in generated] == [clara.tokenizer.decode(ids) for ids in expected]
    assert [g.finish_reason for g in generated] == ["stop" if len(ids) < 12 else "length" for ids in expected]
    assert [g.n_tokens for g in generated] == [min(len(ids) + 1, 12) for ids in expected]


def test_small_batches_give_the_same_answers(clara: ClaraModel, memories: list[torch.Tensor]) -> None:
    whole = Generator(clara).generate(QUESTIONS, memories, max_tokens=6)
    assert Generator(clara, max_batch_tokens=1).generate(QUESTIONS, memories, max_tokens=6) == whole


def test_nothing_is_computed_for_finished_rows(clara: ClaraModel, memories: list[torch.Tensor]) -> None:
    rows_per_pass: list[tuple[int, int]] = []
    head_positions: list[int] = []
    clara.base.base_model.register_forward_hook(
        lambda module, args, kwargs, output: rows_per_pass.append(tuple(kwargs["inputs_embeds"].shape[:2])),
        with_kwargs=True,
    )
    clara.base.get_output_embeddings().register_forward_hook(
        lambda module, args, output: head_positions.append(output.numel() // output.shape[-1])
    )
    generated = Generator(clara).generate(QUESTIONS, memories, max_tokens=[5, 1, 3, 2])
    assert [g.n_tokens for g in generated] == [5, 1, 3, 2]
    # Prefill of all four; then one token each for the rows that still run.
    assert [rows for rows, _ in rows_per_pass] == [4, 3, 2, 1, 1]
    assert [length for _, length in rows_per_pass[1:]] == [1, 1, 1, 1]
    assert head_positions == [4, 3, 2, 1, 1]


def test_sampling_follows_the_distribution_and_the_seed(clara: ClaraModel) -> None:
    generator = Generator(clara)
    prompt = clara.tokenizer.prompt("rain", 0)
    with torch.no_grad(), clara.role("generator"):
        logits_V = clara.logits(clara.body(clara.embed(torch.tensor([prompt])))[0, -1])
    n = 1000
    drawn = generator.generate_ids([prompt] * n, max_tokens=1, temperature=3.0, seed=7)
    counts = Counter(g.token_ids[0] if g.token_ids else -1 for g in drawn)
    best = int(logits_V.argmax())
    p = (logits_V / 3.0).softmax(-1)[best].item()
    # Five standard deviations of a binomial share.
    assert abs(counts[best] / n - p) < 5 * (p * (1 - p) / n) ** 0.5
    again = generator.generate_ids([prompt] * n, max_tokens=1, temperature=3.0, seed=7)
    assert drawn == again


def test_memories_must_match_the_questions(clara: ClaraModel, memories: list[torch.Tensor]) -> None:
    with pytest.raises(ModelError, match="every question needs its memories"):
        Generator(clara).generate(QUESTIONS[:3], memories)
    with pytest.raises(ModelError, match="max_tokens must be positive"):
        Generator(clara).generate(QUESTIONS, memories, max_tokens=0)
    with pytest.raises(ModelError, match="temperature"):
        Generator(clara).generate(QUESTIONS, memories, temperature=-1.0)


def test_answers_beyond_the_context_are_refused(clara: ClaraModel) -> None:
    with pytest.raises(TokenizationError, match="context"):
        Generator(clara).generate(["rain"], max_tokens=100_000)
