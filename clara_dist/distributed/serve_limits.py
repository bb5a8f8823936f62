"""The server's defaults and limits, for all routes. Imports no ray, no torch, no transformers."""

from __future__ import annotations

from typing import Any

from clara_dist.config.serve import ServeConfig
from clara_dist.distributed.serve_errors import ApiError
from clara_dist.distributed.serve_messages import Ask
from clara_dist.inference.engine import Sampling


class Bounds:
    """Fills in what a request does not say, and refuses what is above a limit (`ApiError` 400)."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config

    def question(self, text: str) -> str:
        _require("question", len(text), self._config.limits.max_question_chars, "characters")
        return text

    def top_k(self, value: int | None) -> int:
        value = self._config.top_k if value is None else value
        return _require("top_k", value, self._config.limits.max_top_k, "documents")

    def ask(
        self,
        question: str,
        top_k: int | None,
        max_tokens: int | None,
        *,
        where: str | None,
        explain: bool = False,
        **sampling: Any,
    ) -> Ask:
        """What the engine is asked; sampling without a word on it is greedy."""
        max_tokens = self._config.max_tokens if max_tokens is None else max_tokens
        _require("max_tokens", max_tokens, self._config.limits.max_tokens, "tokens")
        return Ask(self.question(question), self.top_k(top_k), Sampling(max_tokens, **sampling), where, explain)


def _require(name: str, value: int, limit: int, unit: str) -> int:
    if value > limit:
        raise ApiError(400, f"{name}: {value} {unit}, at most {limit} are allowed", param=name)
    return value
