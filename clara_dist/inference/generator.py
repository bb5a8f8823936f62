"""Answers from memories, many at a time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from clara_dist.errors import ModelError
from clara_dist.inference.engine import FinishReason, Sampling
from clara_dist.inference.scheduler import Scheduler
from clara_dist.model.clara import ClaraModel


@dataclass(frozen=True)
class GeneratedText:
    """One answer.

    Attributes:
        text: The decoded answer.
        token_ids: Its ids, without the stop token.
        finish_reason: ``stop``: the model ended the answer; ``length``: max_tokens did.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason

    @property
    def n_tokens(self) -> int:
        """Tokens that were computed: those of the answer, and its stop token."""
        return len(self.token_ids) + (self.finish_reason == "stop")


class Generator:
    """Answers a list of questions with one `Scheduler`, greedily or by drawing.

    The same instance of `ClaraModel` may serve a `Reasoner`, though not at the same time.

    Args:
        clara: A model with a generator.
        max_batch_tokens: As of `Scheduler`.
    """

    def __init__(self, clara: ClaraModel, max_batch_tokens: int = 65_536) -> None:
        self.clara = clara
        self.max_batch_tokens = max_batch_tokens
        clara.eval()

    def generate(
        self,
        questions: Sequence[str],
        memory_BKMD: Tensor | Sequence[Tensor] | None = None,
        *,
        max_tokens: int | Sequence[int] = 64,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> list[GeneratedText]:
        """Answer questions.

        Args:
            questions: B questions.
            memory_BKMD: Memories of each question's documents, best first; a sequence of ``[K, M, D]`` may be ragged in
                K. None: closed book.
            max_tokens: Longest answer, for all rows or per row.
            temperature: 0 is greedy.
            seed: Makes sampling repeatable.

        Raises:
            TokenizationError: A prompt is too long.
            ModelError: Memories and questions do not fit together.
        """
        prompts, memories = self._prompts(questions, memory_BKMD)
        return self.generate_ids(prompts, memories, max_tokens=max_tokens, temperature=temperature, seed=seed)

    def generate_ids(
        self,
        prompts: Sequence[Sequence[int]],
        memories: Sequence[Tensor] | None = None,
        *,
        max_tokens: int | Sequence[int] = 64,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> list[GeneratedText]:
        """As `generate`, from ready prompts (`ClaraTokenizer.prompt`, `ClaraTokenizer.text_prompt`)."""
        samplings = _samplings(max_tokens, len(prompts), temperature, seed)
        # Prompts of similar length are read together, and the longest first: what does not fit fails at once.
        order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
        scheduler = self._scheduler(len(prompts))
        row_of = {
            scheduler.add(prompts[row], None if memories is None else memories[row], samplings[row]): row
            for row in order
        }
        ids: list[list[int]] = [[] for _ in prompts]
        reasons: list[FinishReason] = ["length"] * len(prompts)
        while not scheduler.is_idle:
            for new in scheduler.step():
                row = row_of[new.ticket]
                if new.finish_reason == "stop":
                    reasons[row] = "stop"
                else:
                    ids[row].append(new.token_id)
        decode = self.clara.tokenizer.decode
        return [GeneratedText(decode(i), tuple(i), reason) for i, reason in zip(ids, reasons, strict=True)]

    def _scheduler(self, n_rows: int) -> Scheduler:
        return Scheduler(self.clara, max_rows=max(1, n_rows), max_batch_tokens=self.max_batch_tokens)

    def _prompts(
        self, questions: Sequence[str], memory_BKMD: Tensor | Sequence[Tensor] | None
    ) -> tuple[list[list[int]], list[Tensor] | None]:
        memories = None if memory_BKMD is None else list(memory_BKMD)
        if memories is not None and len(memories) != len(questions):
            raise ModelError("every question needs its memories", got=len(memories), expected=len(questions))
        counts = [0] * len(questions) if memories is None else [len(memory_KMD) for memory_KMD in memories]
        tokenizer = self.clara.tokenizer
        return [tokenizer.prompt(question, k) for question, k in zip(questions, counts, strict=True)], memories


def _samplings(max_tokens: int | Sequence[int], n_rows: int, temperature: float, seed: int | None) -> list[Sampling]:
    limits = [max_tokens] * n_rows if isinstance(max_tokens, int) else list(max_tokens)
    if len(limits) != n_rows or any(limit < 1 for limit in limits):
        raise ModelError("max_tokens must be positive, one or one per question", got=max_tokens)
    if temperature < 0:
        raise ModelError("temperature must not be negative", got=temperature)
    seeds: list[int | None] = [None] * n_rows
    if seed is not None:
        draw = random.Random(seed)
        seeds = [draw.getrandbits(63) for _ in range(n_rows)]
    return [Sampling(limit, temperature, seed=row_seed) for limit, row_seed in zip(limits, seeds, strict=True)]
