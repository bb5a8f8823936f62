"""Text of an answer whose tokens come one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class GrowingText:
    """Decodes ids as they come. Holds back what a later token may still change, and what may begin a stop text.

    Args:
        decode: From ids to text.
        stop: The text ends before the first of these.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._emitted = ""
        self.stopped = False

    def add(self, token_id: int) -> str:
        """One more token; the text that is certain now. `stopped` tells whether a stop text was reached."""
        self._ids.append(token_id)
        return self._grow(self._decode(self._ids), last=False)

    def end(self) -> str:
        """What was held back; no token follows."""
        return self._grow(self._decode(self._ids), last=True)

    def _grow(self, text: str, *, last: bool) -> str:
        # Some decoders rewrite what they said ("do n" -> "don't"): until it agrees again, nothing is certain.
        if self.stopped or (not last and not text.startswith(self._emitted)):
            return ""
        found = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self.stopped = True
            text = text[: min(found)]
        elif not last:
            # Half a UTF-8 character decodes to U+FFFD.
            text = text.rstrip("\N{REPLACEMENT CHARACTER}")
            text = text[: len(text) - self._n_unsure(text)]
        piece = text[len(self._emitted) :]
        self._emitted += piece
        return piece

    def _n_unsure(self, text: str) -> int:
        """Length of the longest end of a text that a stop text begins with."""
        for n in range(min(len(text), max(map(len, self._stop), default=1) - 1), 0, -1):
            if any(stop.startswith(text[-n:]) for stop in self._stop):
                return n
        return 0
