"""How right an answer is: exact match, F1 and cover match after SQuAD's normalisation (Rajpurkar et al., 2016)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class AnswerScores:
    """Figures between 0 and 1, of one answer or averaged over several.

    As the evaluation script of SQuAD 1.1 has them, but for an answer and a right one that are both empty once they are
    normalised: their F1 is 1, as in the script of SQuAD 2.0, where 1.1's gives 0 beside an exact match of 1.

    Attributes:
        exact_match: The normalised answer is one of the right ones.
        f1: Harmonic mean of word precision and recall, against the right answer that fits best.
        cover_match: A right answer occurs in the answer, as whole words in a row ("art" is not covered by "party").
    """

    exact_match: float
    f1: float
    cover_match: float


def score_answer(answer: str, right_answers: Sequence[str]) -> AnswerScores:
    """Score one answer against all spellings of the right one; each figure takes the spelling that fits best."""
    words = normalized_words(answer)
    spellings = [normalized_words(right) for right in right_answers]
    return AnswerScores(
        exact_match=float(words in spellings),
        f1=max(_f1(words, spelling) for spelling in spellings),
        cover_match=float(any(_covers(words, spelling) for spelling in spellings)),
    )


def normalized_words(text: str) -> list[str]:
    """Words of a text in lower case, without ASCII punctuation and the articles a, an, the."""
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def _f1(words: list[str], spelling: list[str]) -> float:
    if not words or not spelling:
        # No word on either side: nothing to share, so only the empty answer matches the empty one.
        return float(words == spelling)
    shared = sum((Counter(words) & Counter(spelling)).values())
    return 2 * shared / (len(words) + len(spelling))


def _covers(words: list[str], spelling: list[str]) -> bool:
    if not spelling:
        return not words
    return any(words[i : i + len(spelling)] == spelling for i in range(len(words) - len(spelling) + 1))
