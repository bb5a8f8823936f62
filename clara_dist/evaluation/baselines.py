"""BM25: what counting shared words finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import bm25s
import numpy as np

from clara_dist.data.questions import EvalQuestion
from clara_dist.errors import DataError
from clara_dist.evaluation.rankers import Corpus, Ranking, known_rows, unbiased_candidates


class Bm25Ranker:
    """Lucene's BM25 (k1 1.5, b 0.75, English stop words), by the ``bm25s`` package.

    Candidates are scored with the statistics of the whole corpus: inverse document frequencies from a list of 20 would
    mean little. Equal scores keep the store's order.

    Args:
        corpus: The store; all its texts are read into memory.
        document_text: ``(title, text)`` to what is indexed: give the compressor's template, so that both read the same.

    Raises:
        DataError: No document has a word.
    """

    def __init__(self, corpus: Corpus, document_text: Callable[[str, str], str]) -> None:
        self._corpus = corpus
        documents = corpus.documents(np.arange(corpus.n_documents))
        self._doc_ids = [document.doc_id for document in documents]
        words = _words([document_text(document.title, document.text) for document in documents])
        if not any(words):
            raise DataError(
                "BM25 finds no words in the corpus", hint="its words are runs of two or more letters or digits"
            )
        self._index = bm25s.BM25()
        self._index.index(words, show_progress=False)

    def among_candidates(self, questions: Sequence[EvalQuestion], depth: int) -> list[Ranking]:
        candidates = [unbiased_candidates(question) for question in questions]
        rows = known_rows(self._corpus, candidates)
        return [
            self._ranking(rows_N, self._scores(words)[rows_N], depth)
            for rows_N, words in zip(rows, self._question_words(questions), strict=True)
        ]

    def in_corpus(self, questions: Sequence[EvalQuestion], depth: int) -> list[Ranking]:
        rows_S = np.arange(len(self._doc_ids))
        return [self._ranking(rows_S, self._scores(words), depth) for words in self._question_words(questions)]

    def _ranking(self, rows_N: np.ndarray, scores_N: np.ndarray, depth: int) -> Ranking:
        best = _best(scores_N, depth)
        return Ranking(tuple(self._doc_ids[row] for row in rows_N[best]), tuple(scores_N[best].tolist()))

    def _question_words(self, questions: Sequence[EvalQuestion]) -> list[list[str]]:
        return _words([question.question for question in questions])

    def _scores(self, words: list[str]) -> np.ndarray:
        # bm25s indexes into the first word, so it needs one.
        return self._index.get_scores(words) if words else np.zeros(len(self._doc_ids), np.float32)


def _words(texts: list[str]) -> list[list[str]]:
    return cast(list[list[str]], bm25s.tokenize(texts, return_ids=False, show_progress=False))


def _best(scores_S: np.ndarray, k: int) -> list[int]:
    """Positions of the k highest scores, best first, the lower position first among equals."""
    k = min(k, len(scores_S))
    threshold = np.partition(scores_S, len(scores_S) - k)[len(scores_S) - k]
    rows = np.flatnonzero(scores_S >= threshold)
    return cast(list[int], rows[np.argsort(-scores_S[rows], kind="stable")][:k].tolist())
