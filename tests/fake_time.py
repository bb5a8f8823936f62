"""Time that passes only where somebody sleeps."""

from __future__ import annotations

import asyncio

from clara_dist.synthesis import Timing


class FakeTime:
    """A clock for `Timing`: sleeping moves it on at once, and chance always takes the upper bound."""

    def __init__(self, now: float = 0.0, wall: float = 1_700_000_000.0) -> None:
        self.now = now
        self.wall = wall
        self.slept: list[float] = []

    @property
    def timing(self) -> Timing:
        return Timing(
            clock=lambda: self.now, wall=lambda: self.wall + self.now, sleep=self._sleep, uniform=lambda low, high: high
        )

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)
