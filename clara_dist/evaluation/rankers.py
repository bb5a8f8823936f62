"""Ways to rank the rows of a store for a question: documents, or passages where long ones were split.

All of them speak in the rows' doc_ids, so no metric depends on a model or a store.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from clara_dist.core import cosine_scores, top_k
from clara_dist.data.questions import EvalQuestion
from clara_dist.errors import DataError


class CorpusDocument(Protocol):
    """A document as a store returns it."""

    @property
    def doc_id(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def text(self) -> str: ...


class Corpus(Protocol):
    """What evaluation needs of a memory store; rows are numbered 0 .. n_documents - 1."""

    @property
    def n_documents(self) -> int: ...
    @property
    def n_parents(self) -> int:
        """Documents before long ones were split into several rows."""

    def rows_of_documents(self, doc_ids: Sequence[str]) -> Sequence[np.ndarray]:
        """int64, all rows of each document, none where it is absent; a row's own id gives that row."""

    def doc_ids(self, rows: np.ndarray) -> Sequence[str]: ...
    def documents(self, rows: np.ndarray) -> Sequence[CorpusDocument]: ...
    def take_memory(self, rows: np.ndarray) -> np.ndarray:
        """float16, shape of ``rows`` + [M, D]."""


class Searcher(Protocol):
    """Search of the whole corpus; the result has ``rows_BK`` and ``scores_BK``, best first."""

    def search(self, query_BX: Any, k: int) -> Any: ...


class QueryEncoder(Protocol):
    """Questions to float32 vectors [B, M * D], such as `clara_dist.inference.reasoner.Reasoner`."""

    def query(self, questions: Sequence[str]) -> np.ndarray: ...


class Ranking(NamedTuple):
    """What a method finds for one question, best first.

    Attributes:
        doc_ids: Of rows of the store.
        scores: Whatever the method orders by, higher is better.
    """

    doc_ids: tuple[str, ...]
    scores: tuple[float, ...]


class Ranker(Protocol):
    """A retrieval method: at most ``depth`` rows a question."""

    def among_candidates(self, questions: Sequence[EvalQuestion], depth: int) -> list[Ranking]: ...
    def in_corpus(self, questions: Sequence[EvalQuestion], depth: int) -> list[Ranking]: ...


class LatentRanker:
    """Ranks by the cosine between the reasoner's vector and the documents' memories.

    Args:
        reasoner: Any query encoder of the store's memory space.
        corpus: The store.
        searcher: Search of that store.
    """

    def __init__(self, reasoner: QueryEncoder, corpus: Corpus, searcher: Searcher) -> None:
        self._reasoner = reasoner
        self._corpus = corpus
        self._searcher = searcher

    def among_candidates(self, questions: Sequence[EvalQuestion], depth: int) -> list[Ranking]:
        query_BX = torch.from_numpy(self._reasoner.query([q.question for q in questions]))
        candidates = [unbiased_candidates(question) for question in questions]
        rankings = []
        for query_X, rows in zip(query_BX, known_rows(self._corpus, candidates), strict=True):
            memory_NMD = torch.from_numpy(self._corpus.take_memory(rows))
            scores_1N = cosine_scores(query_X[None], memory_NMD[None])
            best = top_k(scores_1N, min(depth, len(rows)))[0].tolist()
            rankings.append(Ranking(tuple(self._corpus.doc_ids(rows[best])), tuple(scores_1N[0][best].tolist())))
        return rankings

    def in_corpus(self, questions: Sequence[EvalQuestion], depth: int) -> list[Ranking]:
        query_BX = self._reasoner.query([q.question for q in questions])
        found = self._searcher.search(query_BX, min(depth, self._corpus.n_documents))
        rows_BK, scores_BK = np.asarray(found.rows_BK), np.asarray(found.scores_BK)
        return [
            Ranking(tuple(self._corpus.doc_ids(rows_K)), tuple(scores_K.tolist()))
            for rows_K, scores_K in zip(rows_BK, scores_BK, strict=True)
        ]


def unbiased_candidates(question: EvalQuestion) -> list[str]:
    """The candidates in an order that depends on the question's id alone.

    Files often name the right document first, and equal scores keep the order of the list: a method that knows nothing
    (BM25 without a shared word) would look perfect.
    """
    order = sorted(question.candidates)
    random.Random(question.question_id).shuffle(order)
    return order


def known_rows(corpus: Corpus, doc_ids: Sequence[Sequence[str]]) -> list[np.ndarray]:
    """Store rows of lists of doc_ids: of a document that was split, those of all its passages.

    Raises:
        DataError: The store lacks one of them.
    """
    flat = [doc_id for row in doc_ids for doc_id in row]
    found = corpus.rows_of_documents(flat)
    missing = [doc_id for doc_id, rows in zip(flat, found, strict=True) if not len(rows)]
    if missing:
        raise DataError(
            "the store lacks documents that the questions name",
            got=f"{len(missing)} missing, the first is {missing[0]!r}",
            expected=f"all {len(flat)} of them among the store's {corpus.n_documents} documents",
            hint="evaluate on the store of the corpus that the questions were written for",
        )
    each = iter(found)
    return [np.concatenate([np.empty(0, np.int64), *islice(each, len(row))]) for row in doc_ids]
