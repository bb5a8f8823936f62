"""Answers from memories, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from clara_dist.errors import ModelError, TokenizationError
from clara_dist.inference.buckets import length_buckets
from clara_dist.inference.decoding import DecodingBatch, left_padded
from clara_dist.model.clara import ClaraModel

FinishReason = Literal["stop", "length"]


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


@dataclass(frozen=True)
class TextPiece:
    """What one decoding step added to one row's answer; the pieces of a row join to its whole text."""

    row: int
    text: str
    finish_reason: FinishReason | None


@dataclass(frozen=True)
class _NewToken:
    row: int
    token_id: int
    finish_reason: FinishReason | None


class Generator:
    """Batched decoding with a KV cache.

    Prompts are left-padded, the LM head runs on the last position only, and a row that has finished leaves the batch,
    cache included. The same instance of `ClaraModel` may serve a `Reasoner`, though not at the same time.

    Args:
        clara: A model with a generator.
        max_batch_tokens: Upper bound of ``rows * (longest prompt + its max_tokens)`` of one batch: what bounds the KV
            cache.
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
        limits = _limits(max_tokens, len(prompts))
        sampler = _Sampler(temperature, seed, self.clara.device)
        ids: list[list[int]] = [[] for _ in prompts]
        reasons: list[FinishReason] = ["length"] * len(prompts)
        lengths = [len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True)]
        for rows in length_buckets(lengths, self.max_batch_tokens):
            batch_memories = None if memories is None else [memories[row] for row in rows]
            batch_limits = [limits[row] for row in rows]
            for step in self._steps([prompts[row] for row in rows], batch_memories, batch_limits, sampler):
                for new in step:
                    if new.finish_reason == "stop":
                        reasons[rows[new.row]] = "stop"
                    else:
                        ids[rows[new.row]].append(new.token_id)
        decode = self.clara.tokenizer.decode
        return [GeneratedText(decode(i), tuple(i), reason) for i, reason in zip(ids, reasons, strict=True)]

    def generate_stream(
        self,
        questions: Sequence[str],
        memory_BKMD: Tensor | Sequence[Tensor] | None = None,
        *,
        max_tokens: int | Sequence[int] = 64,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> Iterator[TextPiece]:
        """As `generate`, one batch whatever its size, yielding text as soon as it is certain.

        Every row ends with a piece that has a ``finish_reason``. Between two pieces the model is free for other work.
        """
        prompts, memories = self._prompts(questions, memory_BKMD)
        sampler = _Sampler(temperature, seed, self.clara.device)
        texts = [_GrowingText(self.clara) for _ in prompts]
        for step in self._steps(prompts, memories, _limits(max_tokens, len(prompts)), sampler):
            for new in step:
                text = texts[new.row].add(new)
                if text or new.finish_reason:
                    yield TextPiece(new.row, text, new.finish_reason)

    def _prompts(
        self, questions: Sequence[str], memory_BKMD: Tensor | Sequence[Tensor] | None
    ) -> tuple[list[list[int]], list[Tensor] | None]:
        memories = None if memory_BKMD is None else list(memory_BKMD)
        if memories is not None and len(memories) != len(questions):
            raise ModelError("every question needs its memories", got=len(memories), expected=len(questions))
        counts = [0] * len(questions) if memories is None else [len(memory_KMD) for memory_KMD in memories]
        tokenizer = self.clara.tokenizer
        return [tokenizer.prompt(question, k) for question, k in zip(questions, counts, strict=True)], memories

    @torch.inference_mode()
    def _steps(
        self,
        prompts: Sequence[Sequence[int]],
        memories: Sequence[Tensor] | None,
        limits: Sequence[int],
        sampler: _Sampler,
    ) -> Iterator[list[_NewToken]]:
        """One list of new tokens per decoding step, until every row has finished."""
        self._require_context(prompts, limits)
        padded = left_padded(prompts, self.clara.tokenizer.memory_ids, self.clara.tokenizer.pad_id)
        batch = DecodingBatch(self.clara, padded)
        logits_BV = batch.prefill(None if memories is None else torch.cat(list(memories)))
        alive = list(range(len(prompts)))
        n_done = 0
        while True:
            token_ids = sampler(logits_BV).tolist()
            n_done += 1
            step = [
                _NewToken(row, token_id, self._finish_reason(token_id, n_done, limits[row]))
                for row, token_id in zip(alive, token_ids, strict=True)
            ]
            yield step
            keep = [i for i, new in enumerate(step) if new.finish_reason is None]
            if not keep:
                return
            if len(keep) < len(alive):
                batch.keep(keep)
                alive = [alive[i] for i in keep]
            logits_BV = batch.step([token_ids[i] for i in keep])

    def _finish_reason(self, token_id: int, n_done: int, limit: int) -> FinishReason | None:
        if token_id in self.clara.tokenizer.stop_ids:
            return "stop"
        return "length" if n_done >= limit else None

    def _require_context(self, prompts: Sequence[Sequence[int]], limits: Sequence[int]) -> None:
        longest = max(len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True))
        window = getattr(self.clara.base.config, "max_position_embeddings", None)
        if window is not None and longest > window:
            raise TokenizationError(
                "prompt and answer exceed the base model's context",
                got=f"{longest} tokens with max_tokens",
                expected=f"at most {window}",
                hint="lower max_tokens or use fewer documents",
            )


class _Sampler:
    """Greedy at temperature 0, else multinomial."""

    def __init__(self, temperature: float, seed: int | None, device: torch.device) -> None:
        if temperature < 0:
            raise ModelError("temperature must not be negative", got=temperature)
        self.temperature = temperature
        self.random = torch.Generator(device)
        if seed is None:
            self.random.seed()
        else:
            self.random.manual_seed(seed)

    def __call__(self, logits_BV: Tensor) -> Tensor:
        if self.temperature == 0:
            return logits_BV.argmax(-1)
        probabilities_BV = (logits_BV.float() / self.temperature).softmax(-1)
        return torch.multinomial(probabilities_BV, 1, generator=self.random).squeeze(1)


class _GrowingText:
    """Decodes a row's ids as they come; text that a later token may still change is held back."""

    def __init__(self, clara: ClaraModel) -> None:
        self.decode = clara.tokenizer.decode
        self.ids: list[int] = []
        self.emitted = ""

    def add(self, new: _NewToken) -> str:
        if new.finish_reason != "stop":
            self.ids.append(new.token_id)
        text = self.decode(self.ids)
        # Half a UTF-8 character decodes to U+FFFD, and some decoders rewrite the end ("do n" -> "don't").
        unsure = text.endswith("\N{REPLACEMENT CHARACTER}") or not text.startswith(self.emitted)
        if unsure and new.finish_reason is None:
            return ""
        piece = text[len(self.emitted) :]
        self.emitted = text
        return piece


def _limits(max_tokens: int | Sequence[int], n_rows: int) -> list[int]:
    limits = [max_tokens] * n_rows if isinstance(max_tokens, int) else list(max_tokens)
    if len(limits) != n_rows or any(limit < 1 for limit in limits):
        raise ModelError("max_tokens must be positive, one or one per question", got=max_tokens)
    return limits
