"""A job that is asked to stop ends in order, and says how to go on."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stop:
    """Whether the job was asked to stop by SIGTERM.

    Attributes:
        is_asked: It was, and goes on only to finish what it has begun.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self._is_deferred = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Put a stop off: within the block SIGTERM only sets ``is_asked``, and the process ends with the block."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False
        if self.is_asked:
            raise SystemExit(128 + signal.SIGTERM)

    def ask(self, signum: int, _frame: Any) -> None:
        """The signal handler; the second signal finds the default one, which kills."""
        signal.signal(signum, signal.SIG_DFL)
        self.is_asked = True
        if not self._is_deferred:
            raise SystemExit(128 + signum)
        print("asked to stop: finishing what is under way", file=sys.stderr, flush=True)


@contextmanager
def stoppable(how_to_go_on: str) -> Iterator[Stop]:
    """Let SIGTERM and Ctrl-C unwind the block, so that workers are released; a second SIGTERM kills at once.

    SIGTERM (``ray job stop``, a preempted driver) ends the process with 143, at once or when a `Stop.deferred` block
    lets it; Ctrl-C stays a KeyboardInterrupt, which the command line ends with 130. Ray sets a handler of its own when
    it connects: enter this block after that.

    Args:
        how_to_go_on: The line for standard error.
    """
    stop = Stop()
    is_main = threading.current_thread() is threading.main_thread()  # no other may set handlers
    before = signal.signal(signal.SIGTERM, stop.ask) if is_main else None
    try:
        yield stop
    except (KeyboardInterrupt, SystemExit):
        print(how_to_go_on, file=sys.stderr, flush=True)
        raise
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)
