"""Work that goes on beside training, one piece at a time: writing checkpoints, copying logs to an object store."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType


class BackgroundWriter:
    """One thread. What goes wrong in it is raised by the next call of any method, so it ends the run.

    Left by an exception, the block waits for the work to finish, and the exception goes first.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="background-writer")
        self._pending: Future[str | None] | None = None

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True)
        if error is None:
            self.join()

    @property
    def busy(self) -> bool:
        """Whether there is work whose end has not been collected."""
        return self._pending is not None

    def submit(self, work: Callable[[], str | None]) -> str | None:
        """Start work as soon as that before it is done; returns what the work before had to say.

        Args:
            work: Returns a line for the log, or None. It must not touch what training changes.
        """
        said = self.join()
        self._pending = self._pool.submit(work)
        return said

    def poll(self) -> str | None:
        """What the work has to say, if it is done; None while it is not."""
        return self.join() if self._pending is not None and self._pending.done() else None

    def join(self) -> str | None:
        """Wait for the work, and return what it has to say."""
        pending, self._pending = self._pending, None
        return None if pending is None else pending.result()
