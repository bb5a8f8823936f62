"""Time and chance, in one place, so that tests can hold them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Where a client gets its time from.

    Attributes:
        clock: Seconds that never run backwards.
        wall: Seconds since 1970, which dates are compared with.
        sleep: Waits so many seconds.
        uniform: A random number between two.
    """

    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    uniform: Callable[[float, float], float] = random.uniform
