"""How much memory this process and all that it started take together."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil


class PeakMemory:
    """Watches this process and its descendants in a thread, for the length of a ``with`` block.

    Attributes:
        peak_bytes: Highest sum of the proportional set sizes: a page that n processes share counts 1/n for each, so
            that the sum is what the machine has to provide. Where the system does not tell (not Linux), resident set
            sizes, which count shared pages several times.
    """

    def __init__(self, every_s: float = 1.0) -> None:
        self.peak_bytes = 0
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        root = psutil.Process()
        while True:
            total = sum(_size(process) for process in [root, *root.children(recursive=True)])
            self.peak_bytes = max(self.peak_bytes, total)
            if self._stop.wait(self._every_s):
                return


def _size(process: psutil.Process) -> int:
    """Bytes of one process; 0 if it has just ended, or is another user's."""
    try:
        sizes = process.memory_full_info()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
    return int(getattr(sizes, "pss", sizes.rss))
