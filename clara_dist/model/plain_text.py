"""Tokenisation of untrusted text, exactly as if it stood inside a longer string, but never as special tokens."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import AddedToken, Encoding, Tokenizer
from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, eq=False)
class _FramedBackend:
    sentinel: str
    backend: Tokenizer


class PlainTextEncoder:
    """Encodes a stretch of text that follows a special token (or starts the string).

    The ids of a string are decided by the whole string: with Metaspace tokenizers a text at the start gets a leading
    ``▁`` that the same text after a special token may not get. The stretch is therefore encoded behind a sentinel,
    an added token that the text does not contain, whose own id is dropped. Special tokens spelled out in the text
    (``</s>``, ``<MEM0>``, ``<|im_start|>``) are encoded as the characters that they are.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        tree = json.loads(tokenizer.backend_tokenizer.to_str())
        tree["truncation"] = tree["padding"] = None
        self._json = json.dumps(tree)
        unknown = tokenizer.unk_token_id
        self._special_ids = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special and i != unknown}
        self._framed: list[_FramedBackend] = []

    def encode(self, text: str, *, at_start: bool = False) -> list[int]:
        """Ids of ``text``; ``at_start`` says that nothing, not even a special token, stands before it."""
        return self.encode_batch([text], at_start=at_start)[0]

    def encode_batch(self, texts: Sequence[str], *, at_start: bool = False) -> list[list[int]]:
        """`encode` of many texts, in parallel."""
        chosen = [self._backend_for(text) for text in texts]
        encodings: list[Encoding | None] = [None] * len(texts)
        for framed in set(chosen):  # one, unless a text contains the first sentinel
            rows = [i for i, other in enumerate(chosen) if other is framed]
            inputs = [texts[i] if at_start else framed.sentinel + texts[i] for i in rows]
            for i, encoding in zip(rows, framed.backend.encode_batch(inputs, add_special_tokens=False), strict=True):
                encodings[i] = encoding
        return [
            self._checked(text, encoding, 0 if at_start else 1, 0 if at_start else len(framed.sentinel))
            for text, encoding, framed in zip(texts, encodings, chosen, strict=True)
            if encoding is not None
        ]

    def token_ends(self, text: str) -> list[int]:
        """Where each token of `encode` ends in ``text``, in characters, ascending; exact but for special pieces."""
        framed = self._backend_for(text)
        encoding = framed.backend.encode(framed.sentinel + text, add_special_tokens=False)
        # A character of several tokens ends with each of them.
        return list(itertools.accumulate((end - len(framed.sentinel) for _, end in encoding.offsets[1:]), max))

    def _checked(self, text: str, encoding: Encoding, skip: int, offset: int) -> list[int]:
        ids = list(encoding.ids[skip:])
        if self._special_ids.isdisjoint(ids):
            return ids
        # A model can still spell a special piece by itself (Unigram: it is in the vocabulary). Cut through the literal,
        # so that no piece can cover it, and encode the two sides.
        hit = next(i for i, token in enumerate(ids) if token in self._special_ids)
        start, end = (position - offset for position in encoding.offsets[skip + hit])
        middle = start + max(1, (end - start) // 2)
        return self.encode(text[:middle], at_start=skip == 0) + self.encode(text[middle:])

    def _backend_for(self, text: str) -> _FramedBackend:
        for framed in self._framed:
            if framed.sentinel not in text:
                return framed
        # Private-use characters: no tokenizer has them as a token, and hardly a text contains them. Each sentinel has a
        # backend of its own, because an added token is matched wherever it stands.
        sentinel = next(s for i in itertools.count() if (s := f"\ue0c1{i}\ue0c2") not in text)
        backend = Tokenizer.from_str(self._json)
        backend.encode_special_tokens = True  # "do not match special tokens", despite its name
        backend.add_tokens([AddedToken(sentinel, special=False, normalized=False)])
        self._framed.append(_FramedBackend(sentinel, backend))
        return self._framed[-1]
