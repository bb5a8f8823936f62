"""Documents that are longer than the compressor reads, as overlapping passages that it can read whole."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clara_dist.errors import ConfigError
from clara_dist.model.tokens import ClaraTokenizer, EncodedText

# How far before the last token that fits a border is looked for: a quarter of the passage, an eighth for its start.
_END_REACH, _START_REACH = 4, 8
_SENTENCE_END = re.compile(
    r"[.!?\u2026]+[\"'\u201d\u2019)\]]*(?=\s)|[\u3002\uff01\uff1f]+|(?=\n)"
)  # also East Asian ones
_SPACE = re.compile(r"(?=\s)")
_ZERO_WIDTH_JOINER = "\u200d"
# Code points: families of emoji have 11; whoever piles up more marks than this on a letter gets it cut.
_LONGEST_CHARACTER = 32


@dataclass(frozen=True)
class Passage:
    """What one memory stands for.

    Attributes:
        title: The document's, shortened where it would leave too little room for the text.
        text: The document's text, or a stretch of it without white space at its edges.
        encoded: Encoder input of both.
    """

    title: str
    text: str
    encoded: EncodedText


class PassageSplitter:
    """Splits what does not fit into ``doc_max_tokens``, and leaves what fits as it is.

    Every passage carries the title and is an exact substring of the text; together they cover it, but for white space.
    A passage ends where a sentence ends if one does so in its last quarter, else between words, else between tokens,
    but never inside a character as readers see it. The next one begins ``overlap_tokens`` before that end, or a word
    earlier, so that what is shorter than the overlap stands whole in one of the two. A title takes up to half of the
    room; of a longer one the passages carry the beginning.

    Args:
        tokenizer: The model's.
        overlap_tokens: Tokens of text that neighbours share; at most half of a passage is shared.

    Raises:
        ConfigError: The model's document template alone is longer than ``doc_max_tokens``.
    """

    def __init__(self, tokenizer: ClaraTokenizer, overlap_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._overlap = overlap_tokens
        if self._room("") < 1:
            raise ConfigError(
                "the document template leaves no room for a text",
                got=repr(tokenizer.config.document_template),
                expected=f"less than {tokenizer.config.doc_max_tokens} tokens (doc_max_tokens)",
                hint="use a shorter document_template, or a model with a larger doc_max_tokens",
            )

    def split(self, documents: Sequence[tuple[str, str]]) -> list[list[Passage]]:
        """The passages of each ``(title, text)``, in order: one, unless it is too long."""
        encoded = self._encode(documents)
        return [
            self._passages(title, text) if whole.truncated else [Passage(title, text, whole)]
            for (title, text), whole in zip(documents, encoded, strict=True)
        ]

    def _encode(self, documents: Sequence[tuple[str, str]]) -> list[EncodedText]:
        return self._tokenizer.encode_texts([self._tokenizer.document_text(*document) for document in documents])

    def _room(self, title: str) -> int:
        """Tokens of text that fit beside a title: about, since a token may straddle the edge of the text."""
        return self._tokenizer.config.doc_max_tokens + 3 - self._encode([(title, "")])[0].n_tokens

    def _passages(self, title: str, text: str) -> list[Passage]:
        title = self._short_title(title)
        room = max(1, self._room(title))
        ends_L = np.array(self._tokenizer.token_ends(text), np.int64)
        passages = []
        start = 0
        while start < len(text):
            passage, start = self._next(title, text, ends_L, start, room)
            if passage.text:
                passages.append(passage)
        return passages

    def _next(self, title: str, text: str, ends_L: np.ndarray, start: int, room: int) -> tuple[Passage, int]:
        """The passage at ``start``, and where the next one begins (the text's length after the last)."""
        first = int(np.searchsorted(ends_L, start, "right"))
        while True:
            end = _passage_end(text, ends_L, start, first, room)
            stripped = text[start:end].strip()
            passage = Passage(title, stripped, self._encode([(title, stripped)])[0])
            # Cut out of its text, a stretch may take a few tokens more. One character may take more than all the room.
            if not passage.encoded.truncated or room == 1:
                break
            room -= max(1, room // 32)
        if end == len(text):
            return passage, end
        return passage, _next_start(text, ends_L, start + 1, end, min(self._overlap, room // 2), room)

    def _short_title(self, title: str) -> str:
        room = self._room("")
        if 2 * self._room(title) >= room:
            return title
        ends_L = np.array(self._tokenizer.token_ends(title), np.int64)
        return title[: _passage_end(title, ends_L, 0, 0, max(1, room // 2))].strip()


def _passage_end(text: str, ends_L: np.ndarray, start: int, first: int, room: int) -> int:
    """Where a passage of at most ``room`` tokens from token ``first`` on ends, in characters."""
    last = first + room - 1
    if last >= len(ends_L) - 1:
        return len(text)
    low = max(int(ends_L[max(last - room // _END_REACH, 0)]), start + 1)
    high = int(ends_L[last])
    for border in (_SENTENCE_END, _SPACE):
        found = [match.end() for match in border.finditer(text, low, high + 1) if match.end() <= high]
        if found:
            return found[-1]
    return _between_characters(text, start + 1, max(high, start + 1))


def _next_start(text: str, ends_L: np.ndarray, least: int, end: int, overlap: int, room: int) -> int:
    """Where the passage after one that ends at ``end`` begins: at a word, at least ``overlap`` tokens before."""
    if not overlap:
        return end
    last = int(np.searchsorted(ends_L, end, "right")) - overlap - 1
    high = max(int(ends_L[max(last, 0)]), least)
    low = max(int(ends_L[max(last - max(1, room // _START_REACH), 0)]), least)
    found = [match.end() for match in _SPACE.finditer(text, low, high + 1) if match.end() <= high]
    return found[-1] if found else _between_characters(text, least, high)


def _between_characters(text: str, least: int, high: int) -> int:
    """The last position up to ``high`` that does not part what readers see as one character; ``high`` if none is."""
    for position in range(high, max(least, high - _LONGEST_CHARACTER) - 1, -1):
        if not _parts_character(text, position):
            return position
    return high


def _parts_character(text: str, position: int) -> bool:
    if not 0 < position < len(text):
        return False
    before, after = text[position - 1], text[position]
    if "\U0001f1e6" <= before <= "\U0001f1ff" and "\U0001f1e6" <= after <= "\U0001f1ff":
        # Flags are pairs of letters: an odd number of them before the position parts a pair.
        letters = re.search("[\U0001f1e6-\U0001f1ff]+$", text[:position])
        return letters is not None and len(letters[0]) % 2 == 1
    return (
        unicodedata.category(after).startswith("M")
        or _ZERO_WIDTH_JOINER in (before, after)
        or "\U0001f3fb" <= after <= "\U0001f3ff"
        or (before, after) == ("\r", "\n")
    )
