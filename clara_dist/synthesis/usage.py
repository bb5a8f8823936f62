"""What requests to an endpoint came to: tokens and failures, none of them free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True, slots=True)
class Usage:
    """Sums over requests; ``a + b`` adds them up.

    Attributes:
        requests: All that were sent. Each is answered, or one of the kinds of failure below.
        prompt_tokens: As the endpoint said.
        completion_tokens: As the endpoint said.
        retries: Requests that repeat a failed one.
        rate_limited: Answered with 429.
        timeouts: No whole answer in time, or 408. The endpoint may have charged tokens for these; it never said.
        connection_errors: No connection, or a lost one.
        server_errors: Answered with 5xx, 409 or 425, or with something that is no chat completion.
        refused: Answered with any other status, which is not tried again.
        malformed: Answers whose text could not be used. Their tokens count as all others.
        without_usage: Answers that did not say their tokens, which the sums therefore lack.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retries: int = 0
    rate_limited: int = 0
    timeouts: int = 0
    connection_errors: int = 0
    server_errors: int = 0
    refused: int = 0
    malformed: int = 0
    without_usage: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Usage)))

    @property
    def answered(self) -> int:
        """Requests that a chat completion came back for."""
        failed = self.rate_limited + self.timeouts + self.connection_errors + self.server_errors + self.refused
        return self.requests - failed

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def to_dict(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, int]) -> Usage:
        return cls(**values)


class Meter:
    """Adds up usage while it arises, so that what was spent is known also where an error ends the work."""

    def __init__(self) -> None:
        self.usage = Usage()

    def add(self, usage: Usage) -> None:
        self.usage = self.usage + usage
