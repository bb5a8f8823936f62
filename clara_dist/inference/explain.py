"""Query vectors in words: what the LM head makes of what the reasoner asks for.

The reasoner writes its vectors in the space of the base LLM's last hidden states, so the base's own head reads them.
Words that the chosen document has and the question has not show what the reasoner added on its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clara_dist.inference.answering import Source
from clara_dist.model.clara import ClaraModel
from clara_dist.model.tokens import ClaraTokenizer


@dataclass(frozen=True)
class Word:
    """A token that a query vector decodes to.

    Attributes:
        text: As it is written, without the space in front.
        token_id: Its id.
        probability: Under the softmax over all V tokens.
        logit: Before it.
        is_word: It begins a word; other tokens are pieces from within words, or signs. Only words are looked up.
        in_document: The document has it as a whole word, letter case aside.
        in_question: So has the question.
    """

    text: str
    token_id: int
    probability: float
    logit: float
    is_word: bool
    in_document: bool
    in_question: bool

    @property
    def is_added(self) -> bool:
        """The reasoner's own: in the document, not in the question."""
        return self.in_document and not self.in_question


@dataclass(frozen=True)
class Explanation:
    """What one question's query vectors say.

    Attributes:
        question: The question.
        source: The document that was chosen for it.
        vectors: For each of the M query vectors its likeliest tokens, best first.
    """

    question: str
    source: Source
    vectors: tuple[tuple[Word, ...], ...]

    @property
    def added_words(self) -> tuple[str, ...]:
        """Distinct words of the document, not of the question, likeliest first, in lower case."""
        words = sorted((word for vector in self.vectors for word in vector if word.is_added), key=_least_likely_last)
        return tuple(dict.fromkeys(word.text.casefold() for word in words))

    def __str__(self) -> str:
        """One line per vector; pieces of words stand as ``-piece``, added words as ``[word]``."""
        lines = [f"{self.question}  ->  {self.source.doc_id} ({self.source.score:.3f})"]
        lines += [f"  {m:>3}  " + "  ".join(map(_shown, vector)) for m, vector in enumerate(self.vectors)]
        return "\n".join(lines)


@torch.inference_mode()
def explain(
    clara: ClaraModel, questions: Sequence[str], query_BMD: Tensor, sources: Sequence[Source], n_words: int = 10
) -> list[Explanation]:
    """Decode query vectors through the LM head.

    Args:
        clara: The model that made them.
        questions: B questions.
        query_BMD: Their query vectors, not normalised.
        sources: The document chosen for each.
        n_words: Tokens per vector.
    """
    n_tokens = clara.tokenizer.first_memory_id
    spelling = _Spelling(clara.tokenizer)
    explanations = []
    for question, query_MD, source in zip(questions, query_BMD, sources, strict=True):
        # CLaRa's added tokens are no words.
        logits_MV = clara.logits(query_MD.to(clara.device, clara.dtype))[:, :n_tokens].float()
        best = logits_MV.topk(min(n_words, n_tokens))
        shares = logits_MV.softmax(-1).gather(1, best.indices)
        in_document, in_question = words_of(f"{source.title} {source.text}"), words_of(question)
        vectors = []
        for vector in zip(best.indices.tolist(), best.values.tolist(), shares.tolist(), strict=True):
            words = []
            for token_id, logit, probability in zip(*vector, strict=True):
                text, is_word = spelling(token_id)
                key = text.casefold() if is_word else None
                words.append(Word(text, token_id, probability, logit, is_word, key in in_document, key in in_question))
            vectors.append(tuple(words))
        explanations.append(Explanation(question, source, tuple(vectors)))
    return explanations


def words_of(text: str) -> frozenset[str]:
    """The words of a text, case-folded."""
    return frozenset(re.findall(r"\w+", text.casefold()))


class _Spelling:
    """How a token is written, and whether it begins a word.

    Every scheme marks the space in front in a way of its own (``Ġ``, ``▁``, ``##`` on the tokens without one); all
    decoders put it back between two tokens.
    """

    def __init__(self, tokenizer: ClaraTokenizer) -> None:
        self._hf = tokenizer.hf
        self._before = self._hf.encode("a", add_special_tokens=False)[-1:]
        self._written_before = self._decode(self._before)

    def __call__(self, token_id: int) -> tuple[str, bool]:
        piece = self._decode([*self._before, token_id]).removeprefix(self._written_before)
        text = piece.strip()
        return text, piece[:1].isspace() and bool(words_of(text))

    def _decode(self, ids: list[int]) -> str:
        return self._hf.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _least_likely_last(word: Word) -> float:
    return -word.probability


def _shown(word: Word) -> str:
    text = f"[{word.text}]" if word.is_added else word.text if word.is_word else f"-{word.text}"
    return f"{text} {word.probability:.2f}"
