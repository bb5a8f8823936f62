"""Tokenisation of untrusted text, exactly as if it stood inside a longer string, but never as special tokens."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

from tokenizers import AddedToken, Encoding, Tokenizer
from transformers import PreTrainedTokenizerFast


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
        self._backend = Tokenizer.from_str(json.dumps(tree))
        self._backend.encode_special_tokens = True  # "do not match special tokens", despite its name
        unknown = tokenizer.unk_token_id
        self._special_ids = {
            i for i, token in tokenizer.added_tokens_decoder.items() if token.special and i != unknown
        }
        self._sentinels: list[tuple[str, int]] = []

    def encode(self, text: str, *, at_start: bool = False) -> list[int]:
        """Ids of ``text``; ``at_start`` says that nothing, not even a special token, stands before it."""
        return self.encode_batch([text], at_start=at_start)[0]

    def encode_batch(self, texts: Sequence[str], *, at_start: bool = False) -> list[list[int]]:
        if at_start:
            encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
            return [self._checked(text, e, 0, 0) for text, e in zip(texts, encodings, strict=True)]
        chosen = [self._sentinel_for(text) for text in texts]
        framed = [sentinel + text for sentinel, text in zip(chosen, texts, strict=True)]
        encodings = self._backend.encode_batch(framed, add_special_tokens=False)
        return [self._checked(t, e, 1, len(s)) for t, e, s in zip(texts, encodings, chosen, strict=True)]

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

    def _sentinel_for(self, text: str) -> str:
        for i in itertools.count():
            if i == len(self._sentinels):
                # Private-use characters: no tokenizer has them as a token, and hardly a text contains them.
                token = AddedToken(f"\ue0c1{i}\ue0c2", special=False, normalized=False, lstrip=False, rstrip=False)
                self._backend.add_tokens([token])
                self._sentinels.append((token.content, self._backend.token_to_id(token.content)))
            if self._sentinels[i][0] not in text:
                return self._sentinels[i][0]
        raise AssertionError("unreachable: a text is finite")
