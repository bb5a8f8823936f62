"""A job that is asked to stop ends in order, and says how to go on."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stoppable(how_to_go_on: str) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C unwind the block, so that workers are released; a second SIGTERM kills at once.

    SIGTERM (``ray job stop``, a preempted driver) ends the process with 143, Ctrl-C stays a KeyboardInterrupt, which
    the command line ends with 130. Ray sets a handler of its own when it connects: enter this block after that.

    Args:
        how_to_go_on: The line for standard error.
    """
    is_main = threading.current_thread() is threading.main_thread()  # no other may set handlers
    before = signal.signal(signal.SIGTERM, _stop) if is_main else None
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        print(how_to_go_on, file=sys.stderr, flush=True)
        raise
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)


def _stop(signum: int, _frame: Any) -> None:
    signal.signal(signum, signal.SIG_DFL)
    raise SystemExit(128 + signum)
