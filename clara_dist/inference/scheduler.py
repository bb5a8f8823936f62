"""Continuous batching: answers that are decoded together, whenever each of them was asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clara_dist.errors import ConfigError, TokenizationError
from clara_dist.inference.decoding import DecodingBatch, left_padded
from clara_dist.inference.engine import FinishReason, Sampling
from clara_dist.inference.sampling import TokenSampler, next_tokens
from clara_dist.model.clara import ClaraModel


@dataclass(frozen=True)
class NewToken:
    """One answer's next token. One that ends it is no part of its text.

    Attributes:
        ticket: The answer's, as `Scheduler.add` gave it.
        finish_reason: ``stop``: the model ended the answer with this token; ``length``: it was the last one allowed.
    """

    ticket: int
    token_id: int
    finish_reason: FinishReason | None


@dataclass
class _Answer:
    ticket: int
    prompt_ids: Sequence[int]
    memory_KMD: Tensor | None
    max_tokens: int
    sampler: TokenSampler
    n_tokens: int = 0
    last_token: int = -1

    @property
    def room(self) -> int:
        """Tokens that it may come to."""
        return len(self.prompt_ids) + self.max_tokens


class Scheduler:
    """Decodes answers in one batch that they join and leave at any step.

    An answer waits for its turn, is read (prefill) in the step that admits it, with the others that are admitted then,
    and gets one token a step from that step on. Turns go strictly by arrival: a long prompt is never overtaken for
    ever. Synchronous, and for one thread; between two steps the model is free for other work.

    Args:
        clara: A model with a generator.
        max_rows: Most answers that are decoded together.
        max_batch_tokens: Upper bound of ``rows * (longest prompt + its max_tokens)``, which bounds the KV cache; an
            answer that is longer by itself is decoded alone.
    """

    def __init__(self, clara: ClaraModel, max_rows: int = 64, max_batch_tokens: int = 65_536) -> None:
        if max_rows < 1 or max_batch_tokens < 1:
            raise ConfigError("max_rows and max_batch_tokens must be positive", got=(max_rows, max_batch_tokens))
        self._clara = clara
        self._max_rows = max_rows
        self._max_batch_tokens = max_batch_tokens
        self._waiting: deque[_Answer] = deque()
        self._running: list[_Answer] = []
        self._batch: DecodingBatch | None = None
        self._n_added = 0
        clara.eval()

    @property
    def n_running(self) -> int:
        return len(self._running)

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    @property
    def is_idle(self) -> bool:
        return not self._running and not self._waiting

    def add(self, prompt_ids: Sequence[int], memory_KMD: Tensor | None, sampling: Sampling) -> int:
        """Queue an answer; returns its ticket.

        Args:
            prompt_ids: With a slot for each memory token.
            memory_KMD: Memories of its documents, best first; None or K = 0: the prompt has no slots.
            sampling: `Sampling`, but for its stop texts: tokens know nothing of them, so who reads the text cancels.

        Raises:
            TokenizationError: Prompt and answer exceed the base model's context.
        """
        require_context(self._clara, len(prompt_ids), sampling.max_tokens)
        self._n_added += 1
        answer = _Answer(self._n_added, prompt_ids, memory_KMD, sampling.max_tokens, TokenSampler(sampling))
        self._waiting.append(answer)
        return answer.ticket

    def cancel(self, ticket: int) -> None:
        """Forget an answer, waiting or running: it takes no part in the next step. One that is over stays so."""
        self._waiting = deque(answer for answer in self._waiting if answer.ticket != ticket)
        self._keep([i for i, answer in enumerate(self._running) if answer.ticket != ticket])

    @torch.inference_mode()
    def step(self) -> list[NewToken]:
        """One token for every running answer, those admitted now included; in order of arrival."""
        admitted = self._admit()
        # Running answers first: on the CPU nothing is gained by the other order, and on a GPU both are queued at once.
        logits = [] if self._batch is None else [self._batch.step([answer.last_token for answer in self._running])]
        if admitted:
            joining = self._prefilled(admitted, logits)
            if self._batch is None:
                self._batch = joining
            else:
                self._batch.join(joining)
            self._running += admitted
        if not self._running:
            return []
        tokens = next_tokens(torch.cat(logits), [answer.sampler for answer in self._running])
        new = [self._advance(answer, token) for answer, token in zip(self._running, tokens, strict=True)]
        self._keep([i for i, each in enumerate(new) if each.finish_reason is None])
        return new

    def _admit(self) -> list[_Answer]:
        """Take waiting answers, as many as fit."""
        admitted: list[_Answer] = []
        if self._batch is not None and not self._batch.joinable:
            return admitted
        longest = max((answer.room for answer in self._running), default=0)
        while self._waiting and len(self._running) + len(admitted) < self._max_rows:
            longest = max(longest, self._waiting[0].room)
            n_rows = len(self._running) + len(admitted) + 1
            if n_rows > 1 and n_rows * longest > self._max_batch_tokens:
                break
            admitted.append(self._waiting.popleft())
        return admitted

    def _prefilled(self, answers: Sequence[_Answer], logits: list[Tensor]) -> DecodingBatch:
        """A batch that has read its prompts; adds its logits to the list."""
        tokenizer = self._clara.tokenizer
        prompts = [answer.prompt_ids for answer in answers]
        batch = DecodingBatch(self._clara, left_padded(prompts, tokenizer.memory_ids, tokenizer.pad_id))
        memories = [answer.memory_KMD for answer in answers if answer.memory_KMD is not None]
        logits.append(batch.prefill(torch.cat(memories) if memories else None))
        for answer in answers:
            answer.memory_KMD = None  # read once; hundreds of KiB each
        return batch

    def _advance(self, answer: _Answer, token: int) -> NewToken:
        answer.last_token = token
        answer.n_tokens += 1
        reason: FinishReason | None = None
        if token in self._clara.tokenizer.stop_ids:
            reason = "stop"
        elif answer.n_tokens >= answer.max_tokens:
            reason = "length"
        return NewToken(answer.ticket, token, reason)

    def _keep(self, rows: Sequence[int]) -> None:
        if len(rows) == len(self._running):
            return
        self._running = [self._running[row] for row in rows]
        if self._batch is not None and rows:
            self._batch.keep(rows)
        else:
            self._batch = None


def require_context(clara: ClaraModel, n_prompt_tokens: int, max_tokens: int) -> None:
    """Refuse an answer that may not fit the base model's context.

    Raises:
        TokenizationError: It may not.
    """
    window = getattr(clara.base.config, "max_position_embeddings", None)
    if window is not None and n_prompt_tokens + max_tokens > window:
        raise TokenizationError(
            "prompt and answer exceed the base model's context",
            got=f"{n_prompt_tokens} prompt tokens and max_tokens {max_tokens}",
            expected=f"at most {window} together",
            hint="lower max_tokens or use fewer documents",
        )
