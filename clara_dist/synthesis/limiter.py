"""How hard an endpoint is worked: requests at a time, and requests and tokens a minute."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from clara_dist.synthesis.timing import Timing

_WINDOW_S = 60.0


class Ticket:
    """One admitted request, and the tokens that it counts for."""

    def __init__(self, time: float, tokens: float) -> None:
        self.time = time
        self.tokens = tokens

    def settle(self, tokens: float) -> None:
        """Count what the request really took in place of the estimate."""
        self.tokens = tokens


class Limiter:
    """Admits requests, first come, first served, within limits that all who share it keep together.

    The limits hold for every 60 seconds, wherever they start: not a bucket's, which lets up to twice as much through
    after a rest. For one event loop.

    Args:
        max_concurrency: Requests under way at a time.
        requests_per_minute: None: no limit.
        tokens_per_minute: None: no limit. A request that alone is above it is sent alone.
        timing: See `Timing`.
    """

    def __init__(
        self,
        max_concurrency: int,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        *,
        timing: Timing | None = None,
    ) -> None:
        self._requests = requests_per_minute
        self._tokens = tokens_per_minute
        self._timing = timing or Timing()
        self._free = asyncio.Semaphore(max_concurrency)
        self._turn = asyncio.Lock()
        self._recent: deque[Ticket] = deque()
        self._paused_until = float("-inf")

    def pause(self, seconds: float) -> None:
        """Admit nobody for so long: the endpoint asked for it."""
        self._paused_until = max(self._paused_until, self._timing.clock() + seconds)

    @asynccontextmanager
    async def admitted(self, tokens: float) -> AsyncIterator[Ticket]:
        """Wait until a request that takes about so many tokens may be sent; it is under way until the block ends."""
        async with self._free:
            # The turn is kept while waiting: a small request must not overtake a large one for ever.
            async with self._turn:
                while (wait := self._wait_s(tokens)) > 0:
                    await self._timing.sleep(wait)
                ticket = Ticket(self._timing.clock(), tokens)
                self._recent.append(ticket)
            yield ticket

    def _wait_s(self, tokens: float) -> float:
        """Seconds until there may be room; 0 where there is."""
        now = self._timing.clock()
        if now < self._paused_until:
            return self._paused_until - now
        while self._recent and self._recent[0].time + _WINDOW_S <= now:
            self._recent.popleft()
        if not self._recent:
            return 0.0
        too_many = self._requests is not None and len(self._recent) + 1 > self._requests
        spent = sum(ticket.tokens for ticket in self._recent) if self._tokens is not None else 0.0
        too_long = self._tokens is not None and spent > 0 and spent + tokens > self._tokens
        # Never 0 for a rounding error, which would let the request through.
        return max(self._recent[0].time + _WINDOW_S - now, 1e-3) if too_many or too_long else 0.0
