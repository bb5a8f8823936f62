"""Where the time of a step goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Fixed, so that the workers' reports have one shape. ``compress``: the stages that train the compressor; ``select``:
# scores and the choice; ``other``: logs, and what the step waits for.
PARTS = (
    "data",
    "compress",
    "reason",
    "search",
    "gather",
    "select",
    "generate",
    "backward",
    "update",
    "evaluate",
    "checkpoint",
    "other",
)


class Stopwatch:
    """Time is always that of one part, from its start to the start of another.

    On a GPU a mark is an event in the stream: nothing waits for it before `lap`. A step has about ten, of 5 us each.

    Args:
        device: Whose time is taken.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._held = False
        self._marks: list[tuple[str, Any]] = []

    def start(self, part: str) -> None:
        """What follows belongs to ``part``, one of `PARTS`."""
        if not self._held:
            self._marks.append((part, self._now()))

    @contextmanager
    def hold(self, part: str) -> Iterator[None]:
        """All that happens inside belongs to ``part``, whatever it starts itself; then to ``other``."""
        self.start(part)
        self._held = True
        try:
            yield
        finally:
            self._held = False
            self.start("other")

    def lap(self) -> dict[str, float]:
        """Seconds of each part since the last lap; the part that runs goes on."""
        seconds = dict.fromkeys(PARTS, 0.0)
        if not self._marks:
            return seconds
        self.start(self._marks[-1][0])
        if self._on_gpu:
            self._marks[-1][1].synchronize()
        for (part, begin), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            seconds[part] += begin.elapsed_time(end) / 1000 if self._on_gpu else end - begin
        del self._marks[:-1]
        return seconds

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
