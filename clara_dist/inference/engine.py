"""What answers questions while others are being answered: the engine's interface. Imports no torch."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from clara_dist.errors import RequestError

if TYPE_CHECKING:
    import numpy as np

FinishReason = Literal["stop", "length"]
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Sampling:
    """How one answer's tokens are chosen, and where it ends.

    Attributes:
        max_tokens: Most tokens that are computed for it.
        temperature: 0 is greedy.
        top_p: Draw from the fewest tokens that together have this probability.
        seed: Makes drawing repeatable, whatever else is answered at the same time. None: another draw each time.
        stop: The answer ends before the first of these texts.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise RequestError("max_tokens must be positive", got=self.max_tokens)
        if not 0.0 <= self.temperature < float("inf"):
            raise RequestError("temperature must be a number from 0", got=self.temperature)
        if not 0.0 < self.top_p <= 1.0:
            raise RequestError("top_p must be above 0 and at most 1", got=self.top_p)
        if not all(self.stop):
            raise RequestError("a stop text must not be empty", got=self.stop)


@dataclass(frozen=True)
class Piece:
    """What a step added to an answer; the pieces join to its whole text.

    Attributes:
        text: May be empty: some tokens end no character, and what may be the start of a stop text waits.
        n_tokens: Tokens computed for it.
        finish_reason: Of the last piece; None before.
    """

    text: str
    n_tokens: int
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class EngineStats:
    """What an engine has to do, and has done since it started."""

    running: int
    waiting: int
    prompt_tokens: int
    completion_tokens: int


class AnswerEngine(Protocol):
    """Reasons and answers on one copy of the base LLM. Used from an event loop, which it never blocks."""

    async def reason(self, questions: Sequence[str]) -> np.ndarray:
        """Query vectors, float32 ``[B, M * D]``; questions of several callers share a forward pass."""
        ...

    def answer(
        self, prompt_ids: Sequence[int], memory_KMD: np.ndarray | None, sampling: Sampling
    ) -> AsyncGenerator[Piece, None]:
        """Answer a prompt, piece by piece. Whoever closes the iterator cancels the answer and frees its place.

        Args:
            prompt_ids: With a slot for each memory token.
            memory_KMD: Memories of its documents, best first; None: a prompt without slots.
            sampling: `Sampling`.

        Raises:
            TokenizationError: Prompt and answer exceed the base model's context.
        """
        ...

    async def run(self, work: Callable[[], ResultT]) -> ResultT:
        """Run something else on the model, while nothing else runs on it."""
        ...

    @property
    def stats(self) -> EngineStats: ...

    @property
    def is_alive(self) -> bool:
        """Whether it can still answer; one that cannot is to be replaced."""
        ...

    def close(self) -> None:
        """End all answers and free the model."""
        ...
