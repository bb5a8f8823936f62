"""Progress of a long job as plain lines, or as one line that renews itself on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO


class Progress:
    """Counts work that is done, and says so from time to time.

    The rate is that of what came after the first piece: workers that start and models that load do not blur it.

    Args:
        what: What is counted, such as ``documents``.
        total: How many there are.
        stream: Where to write.
        every_s: Shortest time between two plain lines; a terminal is renewed more often.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        what: str,
        total: int,
        *,
        stream: TextIO | None = None,
        every_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.what = what
        self.total = total
        self.done = 0
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._every_s = 0.2 if self._is_terminal else every_s
        self._clock = clock
        self._last = clock()
        self._first: tuple[int, float] | None = None

    def add(self, n: int) -> None:
        """Count ``n`` more, and write a line if it is time or all is done."""
        self.done += n
        now = self._clock()
        self._first = self._first or (self.done, now)
        finished = self.done >= self.total
        if now - self._last < self._every_s and not finished:
            return
        self._last = now
        n_first, first_at = self._first
        rate = f", {(self.done - n_first) / (now - first_at):.0f}/s" if now > first_at else ""
        line = f"{self.what} {self.done}/{self.total}{rate}"
        if self._is_terminal:
            self._stream.write(f"\r\x1b[K{line}" + ("\n" if finished else ""))
        else:
            self._stream.write(line + "\n")
        self._stream.flush()
