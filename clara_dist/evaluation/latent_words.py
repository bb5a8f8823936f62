"""What the reasoner adds to a question, counted: the paper's qualitative claim as a number.

Words that its vectors decode to, which the right document has and the question has not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from clara_dist.data.questions import EvalQuestion
from clara_dist.evaluation.rankers import Corpus, known_rows
from clara_dist.inference.answering import Source
from clara_dist.inference.explain import Explanation, explain, words_of
from clara_dist.inference.reasoner import Reasoner
from clara_dist.model.clara import ClaraModel

_BATCH = 64


@dataclass(frozen=True)
class WordCounts:
    """Of one reasoner, means over questions.

    Attributes:
        reasoner: ``untrained`` (the compressor, of which the joint stage starts with a copy) or ``trained``.
        gold_words: Distinct words, decoded from any of the vectors, that the right document has and the question not.
        with_gold_word: Share of the questions with at least one.
        with_answer_word: Share of the questions whose vectors decode to a word of a right answer; None without answers.
        other_words: As ``gold_words``, of the document that is right for the next question: what chance would give.
    """

    reasoner: str
    gold_words: float
    with_gold_word: float
    with_answer_word: float | None
    other_words: float


@dataclass(frozen=True)
class WordReport:
    """The report.

    Attributes:
        n_questions: Questions.
        n_words: Tokens that each vector was decoded to.
        counts: Before and after the joint stage.
    """

    n_questions: int
    n_words: int
    counts: tuple[WordCounts, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything, fit for JSON."""
        return asdict(self)

    def table(self) -> str:
        """The report as plain text."""
        head = f"{'reasoner':<12}{'words of gold':>16}{'any of gold':>14}{'of the answer':>16}{'of another':>14}"
        lines = [f"{self.n_questions:,} questions, the likeliest {self.n_words} tokens of each vector", head]
        for c in self.counts:
            answer = "-" if c.with_answer_word is None else f"{c.with_answer_word:.3f}"
            lines.append(
                f"{c.reasoner:<12}{c.gold_words:>16.2f}{c.with_gold_word:>14.3f}{answer:>16}{c.other_words:>14.2f}"
            )
        return "\n".join(lines)


def count_words(
    clara: ClaraModel,
    store: Corpus,
    questions: Sequence[EvalQuestion],
    *,
    n_words: int = 10,
    on_done: Callable[[int], None] = lambda n: None,
) -> WordReport:
    """Count the words of both reasoners.

    Args:
        clara: A model with compressor and reasoner.
        store: Its store; of a document that was split, the first passage stands for it.
        questions: With positives; the first of them is the right document.
        n_words: Tokens of each vector.
        on_done: Is told how many more questions are done, each twice.

    Raises:
        DataError: The store lacks a document that a question names.
    """
    rows = np.array([found[0] for found in known_rows(store, [question.positives[:1] for question in questions])])
    documents = store.documents(rows)
    gold = [Source(d.doc_id, d.doc_id, d.title, 1.0, d.text) for d in documents]
    counts = []
    for name, reasoner in (("untrained", Reasoner(clara, role="compressor")), ("trained", Reasoner(clara))):
        found: list[Explanation] = []
        for start in range(0, len(questions), _BATCH):
            asked = [question.question for question in questions[start : start + _BATCH]]
            query_BMD = torch.from_numpy(reasoner.query(asked)).view(len(asked), clara.n_memory_tokens, -1)
            found += explain(clara, asked, query_BMD, gold[start : start + _BATCH], n_words)
            on_done(len(asked))
        counts.append(_counts(name, found, gold, questions))
    return WordReport(len(questions), n_words, tuple(counts))


def _counts(
    name: str, found: Sequence[Explanation], gold: Sequence[Source], questions: Sequence[EvalQuestion]
) -> WordCounts:
    added = [len(explanation.added_words) for explanation in found]
    decoded = [decoded_words(explanation) for explanation in found]
    others = [*gold[1:], gold[0]]
    by_chance = [
        len((words & words_of(f"{other.title} {other.text}")) - words_of(question.question))
        for words, other, question in zip(decoded, others, questions, strict=True)
    ]
    says = [
        bool(words & (words_of(" ".join(question.answers)) - words_of(question.question)))
        for words, question in zip(decoded, questions, strict=True)
    ]
    return WordCounts(
        reasoner=name,
        gold_words=float(np.mean(added)),
        with_gold_word=float(np.mean([n > 0 for n in added])),
        with_answer_word=float(np.mean(says)) if questions[0].answers else None,
        other_words=float(np.mean(by_chance)),
    )


def decoded_words(explanation: Explanation) -> frozenset[str]:
    """All whole words that the vectors decode to, case-folded."""
    return frozenset(word.text.casefold() for vector in explanation.vectors for word in vector if word.is_word)
