"""Ways to rank documents for a question. All of them speak in doc_ids, so no metric depends on a model or a store."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Protocol

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
    def rows_of(self, doc_ids: Sequence[str]) -> np.ndarray:
        """int64 rows, -1 where absent."""

    def doc_ids(self, rows: np.ndarray) -> Sequence[str]: ...
    def documents(self, rows: np.ndarray) -> Sequence[CorpusDocument]: ...
    def take_memory(self, rows: np.ndarray) -> np.ndarray:
        """float16, shape of ``rows`` + [M, D]."""


class Searcher(Protocol):
    """Search of the whole corpus; the result has ``rows_BK``, best first."""

    def search(self, query_BX: Any, k: int) -> Any: ...


class QueryEncoder(Protocol):
    """Questions to float32 vectors [B, M * D], such as `clara_dist.inference.reasoner.Reasoner`."""

    def query(self, questions: Sequence[str]) -> np.ndarray: ...


class Ranker(Protocol):
    """A retrieval method: at most ``depth`` doc_ids a question, best first."""

    def among_candidates(self, questions: Sequence[EvalQuestion], depth: int) -> list[tuple[str, ...]]: ...
    def in_corpus(self, questions: Sequence[EvalQuestion], depth: int) -> list[tuple[str, ...]]: ...


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

    def among_candidates(self, questions: Sequence[EvalQuestion], depth: int) -> list[tuple[str, ...]]:
        query_BX = torch.from_numpy(self._reasoner.query([q.question for q in questions]))
        candidates = [unbiased_candidates(question) for question in questions]
        rankings = []
        for query_X, doc_ids, rows in zip(query_BX, candidates, known_rows(self._corpus, candidates), strict=True):
            memory_NMD = torch.from_numpy(self._corpus.take_memory(rows))
            scores_1N = cosine_scores(query_X[None], memory_NMD[None])
            best = top_k(scores_1N, min(depth, len(doc_ids)))[0].tolist()
            rankings.append(tuple(doc_ids[i] for i in best))
        return rankings

    def in_corpus(self, questions: Sequence[EvalQuestion], depth: int) -> list[tuple[str, ...]]:
        query_BX = self._reasoner.query([q.question for q in questions])
        rows_BK = np.asarray(self._searcher.search(query_BX, min(depth, self._corpus.n_documents)).rows_BK)
        return [tuple(self._corpus.doc_ids(rows_K)) for rows_K in rows_BK]


def unbiased_candidates(question: EvalQuestion) -> list[str]:
    """The candidates in an order that depends on the question's id alone.

    Files often name the right document first, and equal scores keep the order of the list: a method that knows nothing
    (BM25 without a shared word) would look perfect.
    """
    order = sorted(question.candidates)
    random.Random(question.question_id).shuffle(order)
    return order


def known_rows(corpus: Corpus, doc_ids: Sequence[Sequence[str]]) -> list[np.ndarray]:
    """Store rows of lists of doc_ids.

    Raises:
        DataError: The store lacks one of them.
    """
    flat = [doc_id for row in doc_ids for doc_id in row]
    rows = np.asarray(corpus.rows_of(flat), dtype=np.int64)
    missing = np.flatnonzero(rows < 0)
    if len(missing):
        raise DataError(
            "the store lacks documents that the questions name",
            got=f"{len(missing)} missing, the first is {flat[missing[0]]!r}",
            expected=f"all {len(flat)} of them among the store's {corpus.n_documents} documents",
            hint="evaluate on the store of the corpus that the questions were written for",
        )
    return np.split(rows, np.cumsum([len(row) for row in doc_ids])[:-1])
