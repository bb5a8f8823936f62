"""What ingress and engine tell each other. Plain values that pickle; imports no torch and no Ray."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from clara_dist.config.http import AnswerReply, Health, LatentWord, RetrieveReply, Source, Timings
from clara_dist.inference.engine import FinishReason, Piece, Sampling


@dataclass(frozen=True)
class Ask:
    """A question that is within the server's limits.

    Attributes:
        top_k: Documents that the answer rests on; fewer where ``where`` leaves fewer.
        where: Which documents may be found (`clara_dist.store.parse_where`); None: all.
        explain: Ask for `Found.words`.
    """

    question: str
    top_k: int
    sampling: Sampling
    where: str | None = None
    explain: bool = False


@dataclass(frozen=True)
class Found:
    """The first thing that is known of an answer: what it will rest on.

    ``words`` has, for each vector of the question, the tokens that it decodes to, likeliest first.
    """

    sources: tuple[Source, ...]
    timings: Timings
    prompt_tokens: int
    model_version: str
    store_version: int
    words: tuple[tuple[LatentWord, ...], ...] = ()
    missing_shards: int = 0


@dataclass(frozen=True)
class Done:
    """The last thing that is known of an answer, after all of its pieces."""

    finish_reason: FinishReason
    completion_tokens: int
    timings: Timings


# Found, then pieces, then Done.
AnswerEvent = Found | Piece | Done


class Backend(Protocol):
    """What stands behind the HTTP interface. Every method may raise `ApiError` or any error that `api_error` maps."""

    async def health(self) -> Health: ...

    async def answer(self, ask: Ask) -> AnswerReply: ...

    def stream(self, ask: Ask) -> AsyncGenerator[AnswerEvent, None]:
        """Whoever closes the iterator cancels the answer."""
        ...

    async def retrieve(self, question: str, top_k: int, where: str | None) -> RetrieveReply: ...
