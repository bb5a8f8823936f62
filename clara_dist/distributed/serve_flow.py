"""When a client that is refused had better come back. Imports no ray, no torch, no transformers."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Ends that are remembered, and for how long: enough for a mean, few enough to follow a change.
_ENDS = 64
_WINDOW_S = 60.0
_LONGEST_S = 30


class Flow:
    """Requests of one ingress replica that are under way, and how fast they end.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._n_under_way = 0
        self._ends: deque[float] = deque(maxlen=_ENDS)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Around a request; one that fails or is refused says nothing about how long an answer takes."""
        self._n_under_way += 1
        try:
            yield
            self._ends.append(self._clock())
        finally:
            self._n_under_way -= 1

    def retry_after_s(self) -> int:
        """Seconds in which what is under way will have ended at the pace of the last minute: 1 .. 30.

        Where fewer than two requests have ended, there is no pace yet: 1.
        """
        now = self._clock()
        ends = [end for end in self._ends if now - end <= _WINDOW_S]
        if len(ends) < 2:
            return 1
        # The first end only starts the clock.
        per_request_s = (now - ends[0]) / (len(ends) - 1)
        return max(1, min(_LONGEST_S, math.ceil(self._n_under_way * per_request_s)))
