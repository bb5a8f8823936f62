"""Retrieval by other people's text models: a dense embedder, a cross-encoder that ranks again what BM25 finds.

Both are directories (or hub ids) of ``sentence-transformers``, an extra; none of their code is run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clara_dist.data.questions import EvalQuestion
from clara_dist.errors import ConfigError
from clara_dist.evaluation.rankers import Corpus, Ranker, Ranking, known_rows, unbiased_candidates

# Texts to float32 [n, E]; pairs of question and text to float32 [n].
Embed = Callable[[Sequence[str]], np.ndarray]
ScorePairs = Callable[[Sequence[tuple[str, str]]], np.ndarray]


class DenseRanker:
    """Ranks by the cosine of embeddings of question and text.

    Args:
        corpus: The store; embeddings of all its texts are held in memory.
        embed: Of texts and questions alike.
        document_text: ``(title, text)`` to what is embedded.
    """

    def __init__(self, corpus: Corpus, embed: Embed, document_text: Callable[[str, str], str]) -> None:
        self._corpus = corpus
        self._embed = embed
        documents = corpus.documents(np.arange(corpus.n_documents))
        self._doc_ids = [document.doc_id for document in documents]
        self._unit_SE = _unit(embed([document_text(document.title, document.text) for document in documents]))

    def among_candidates(self, questions: Sequence[EvalQuestion], depth: int) -> list[Ranking]:
        rows = known_rows(self._corpus, [unbiased_candidates(question) for question in questions])
        query_BE = self._queries(questions)
        return [
            self._ranking(rows_N, self._unit_SE[rows_N] @ query_E, depth)
            for rows_N, query_E in zip(rows, query_BE, strict=True)
        ]

    def in_corpus(self, questions: Sequence[EvalQuestion], depth: int) -> list[Ranking]:
        rows_S = np.arange(len(self._doc_ids))
        return [self._ranking(rows_S, self._unit_SE @ query_E, depth) for query_E in self._queries(questions)]

    def _queries(self, questions: Sequence[EvalQuestion]) -> np.ndarray:
        return _unit(self._embed([question.question for question in questions]))

    def _ranking(self, rows_N: np.ndarray, scores_N: np.ndarray, depth: int) -> Ranking:
        best = np.argsort(-scores_N, kind="stable")[:depth]
        return Ranking(tuple(self._doc_ids[row] for row in rows_N[best]), tuple(scores_N[best].tolist()))


class Reranker:
    """A cross-encoder over what another method finds.

    Args:
        corpus: The store.
        first: Finds what is to be ranked in the whole corpus; given candidates are all scored.
        score_pairs: The cross-encoder.
        document_text: ``(title, text)`` to what it reads.
        n: How many of ``first``'s rows it reads.
    """

    def __init__(
        self,
        corpus: Corpus,
        first: Ranker,
        score_pairs: ScorePairs,
        document_text: Callable[[str, str], str],
        n: int = 50,
    ) -> None:
        self._corpus = corpus
        self._first = first
        self._score_pairs = score_pairs
        self._document_text = document_text
        self._n = n

    def among_candidates(self, questions: Sequence[EvalQuestion], depth: int) -> list[Ranking]:
        rows = known_rows(self._corpus, [unbiased_candidates(question) for question in questions])
        return [self._again(question, rows_N, depth) for question, rows_N in zip(questions, rows, strict=True)]

    def in_corpus(self, questions: Sequence[EvalQuestion], depth: int) -> list[Ranking]:
        found = self._first.in_corpus(questions, max(depth, self._n))
        rows = known_rows(self._corpus, [ranking.doc_ids for ranking in found])
        return [self._again(question, rows_N, depth) for question, rows_N in zip(questions, rows, strict=True)]

    def _again(self, question: EvalQuestion, rows_N: np.ndarray, depth: int) -> Ranking:
        documents = self._corpus.documents(rows_N)
        texts = [self._document_text(document.title, document.text) for document in documents]
        scores_N = np.asarray(self._score_pairs([(question.question, text) for text in texts]), np.float32).reshape(-1)
        best = np.argsort(-scores_N, kind="stable")[:depth]
        return Ranking(tuple(documents[i].doc_id for i in best), tuple(scores_N[best].tolist()))


def load_embedder(name: str, device: str) -> Embed:
    """A ``SentenceTransformer``.

    Raises:
        ConfigError: The package is not installed, or the model cannot be loaded.
    """
    model = _load("SentenceTransformer", name, device)
    return lambda texts: np.asarray(model.encode(list(texts), show_progress_bar=False), np.float32)


def load_cross_encoder(name: str, device: str) -> ScorePairs:
    """A ``CrossEncoder``; raises as `load_embedder`."""
    model = _load("CrossEncoder", name, device)
    return lambda pairs: np.asarray(model.predict(list(pairs), show_progress_bar=False), np.float32)


def _load(kind: str, name: str, device: str) -> Any:
    try:
        import sentence_transformers
    except ImportError as error:
        raise ConfigError(
            "embedders and rerankers need sentence-transformers", got=error, hint="pip install 'clara-dist[dense]'"
        ) from error
    try:
        return getattr(sentence_transformers, kind)(name, device=device, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the {kind} {name} cannot be loaded", got=error) from error


def _unit(vectors_NE: np.ndarray) -> np.ndarray:
    """At length 1; zeros stay zeros."""
    norms_N1 = np.linalg.norm(vectors_NE, axis=1, keepdims=True)
    return np.asarray(vectors_NE / np.where(norms_N1 == 0, 1, norms_N1), np.float32)
