"""Progress of a long job: one bar on a terminal, a plain line from time to time elsewhere."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Callable
from typing import TextIO

from tqdm import tqdm


class Progress:
    """Counts work that is done, and says so from time to time, with its rate and the time that is left.

    Rates are those of what came after the first piece: workers that start and models that load do not blur them.

    Args:
        what: What is counted, such as ``documents``.
        total: How many there are.
        stream: Where to write.
        every_s: Shortest time between two plain lines.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        what: str,
        total: int,
        *,
        stream: TextIO | None = None,
        every_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.what = what
        self.total = total
        self.done = 0
        self.n_tokens = 0
        self.size_bytes = 0
        self.n_rejects = 0
        self.n_failures = 0
        self._stream = stream or sys.stderr
        self._every_s = every_s
        self._clock = clock
        self._last = clock()
        # Where rates start: time, pieces done, tokens done.
        self._first: tuple[float, int, int] | None = None
        self._latest = self._last
        self._bar: tqdm | None = None
        if self._stream.isatty():
            self._bar = tqdm(total=total, desc=what, unit="", file=self._stream, dynamic_ncols=True)

    def note(self, *, n_tokens: int = 0, size_bytes: int = 0, n_rejects: int = 0, n_failures: int = 0) -> None:
        """Count what the next piece brought besides itself; shown with it."""
        self.n_tokens += n_tokens
        self.size_bytes += size_bytes
        self.n_rejects += n_rejects
        self.n_failures += n_failures

    def skip(self, n: int) -> None:
        """Count ``n`` that were there already: they are done, but they are no work."""
        if self._first is not None:
            at, done, n_tokens = self._first
            self._first = at, done + n, n_tokens
        self._count(n)

    def add(self, n: int) -> None:
        """Count ``n`` more, and say so if it is time or all is done."""
        if self._first is None:
            self._first = self._clock(), self.done + n, self.n_tokens
        self._count(n)

    def rate(self, *, of_tokens: bool = False) -> float | None:
        """Pieces (or tokens) a second since the first piece was done; None before a second one is."""
        if self._first is None or self._latest <= self._first[0]:
            return None
        at, done, n_tokens = self._first
        return (self.n_tokens - n_tokens if of_tokens else self.done - done) / (self._latest - at)

    def _count(self, n: int) -> None:
        self.done += n
        now = self._latest = self._clock()
        finished = self.done >= self.total
        if self._bar is not None:
            self._show_bar(finished)
        elif now - self._last >= self._every_s or finished:
            self._last = now
            self._stream.write(
                ", ".join([f"{self.what} {self.done}/{self.total}", *self._rates(), *self._facts()]) + "\n"
            )
            self._stream.flush()

    def _show_bar(self, finished: bool) -> None:
        assert self._bar is not None
        if self._first is not None:
            # Its rate and time left then follow from the same start as ours.
            self._bar.initial = self._first[1]
            self._bar.start_t = time.time() - (self._latest - self._first[0])
        self._bar.n = self.done
        self._bar.set_postfix_str(", ".join(self._facts()), refresh=False)
        self._bar.refresh()
        if finished:
            self._bar.close()

    def _rates(self) -> list[str]:
        rate = self.rate()
        if not rate:
            return []
        left = datetime.timedelta(seconds=round((self.total - self.done) / rate))
        return [
            f"{rate:.0f}/s" if rate >= 2 else f"{rate:.2g}/s",
            *([f"{left} left"] if self.done < self.total else []),
        ]

    def _facts(self) -> list[str]:
        rate = self.rate(of_tokens=True)
        facts = [f"{tqdm.format_sizeof(rate)} tokens/s"] if rate else []
        if self.size_bytes:
            facts.append(f"{tqdm.format_sizeof(self.size_bytes, 'B')} written")
        if self.n_rejects:
            facts.append(f"{self.n_rejects} rejects")
        if self.n_failures:
            facts.append(f"{self.n_failures} failed")
        return facts
