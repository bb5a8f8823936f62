"""Questions to answers with their sources, in one process: the road that the served deployments take apart."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from clara_dist.inference.generator import Generator
from clara_dist.inference.reasoner import Reasoner
from clara_dist.model.clara import ClaraModel
from clara_dist.retrieval.index import open_searcher
from clara_dist.retrieval.search import ExactSearcher, Searcher, SearchResult
from clara_dist.store.fingerprint import Fingerprint
from clara_dist.store.reader import MemoryStore
from clara_dist.store.where import Filter


@dataclass(frozen=True)
class Source:
    """A document, or a passage of one, that was found for a question.

    Attributes:
        doc_id: Its row's id in the store.
        parent_id: The document that it is a passage of; ``doc_id`` itself where it is all of it.
        title: May be empty.
        score: Cosine to the question's query vector.
        text: What its memory stands for.
    """

    doc_id: str
    parent_id: str
    title: str
    score: float
    text: str


@dataclass(frozen=True)
class Answer:
    """An answer.

    Attributes:
        text: What the generator said.
        sources: The documents whose memories it read, best first.
        timings_s: Seconds of the whole batch that the question was part of, by step: reason, search, generate.
    """

    text: str
    sources: tuple[Source, ...]
    timings_s: dict[str, float]


class LocalPipeline:
    """Reasoner, search and generator over one copy of the base LLM. Merges nothing: the model stays as it is.

    Args:
        clara: A model with a query reasoner and a generator.
        store: A store that its compressor wrote.

    Raises:
        FingerprintMismatchError: Another model wrote the store.
    """

    def __init__(self, clara: ClaraModel, store: MemoryStore) -> None:
        store.require_fingerprint(Fingerprint(clara.fingerprint_fields()))
        self.store = store
        self.reasoner = Reasoner(clara)
        self._device = clara.device
        self._searchers: dict[str, Searcher] = {}
        self.generator = Generator(clara)

    def retrieve(
        self, questions: Sequence[str], top_k: int = 5, where: Filter | None = None, index: str = "auto"
    ) -> list[tuple[Source, ...]]:
        """The ``top_k`` nearest documents of each question, best first.

        Args:
            questions: B questions.
            top_k: K.
            where: Only documents that this filter lets through, see `parse_where`. Such a search is exact.
            index: Search by the store's approximate index: ``auto`` where this version has one, ``none``, ``required``.

        Raises:
            TokenizationError: A question is too long.
            RetrievalError: Fewer than ``top_k`` documents are left, or there is no index that is required.
            FilterError: ``where`` cannot be read, or does not fit the store's columns.
        """
        if not questions:
            return []
        return self.sources(self.search(self.reasoner.query(questions), top_k, where, index))

    def answer(
        self,
        questions: Sequence[str],
        top_k: int = 5,
        max_tokens: int = 64,
        temperature: float = 0.0,
        where: Filter | None = None,
        index: str = "auto",
    ) -> list[Answer]:
        """Answer each question from its ``top_k`` nearest documents; arguments and errors as `retrieve`."""
        if not questions:
            return []
        started = time.perf_counter()
        query_BX = self.reasoner.query(questions)
        reasoned = time.perf_counter()
        found = self.search(query_BX, top_k, where, index)
        searched = time.perf_counter()
        memory_BKMD = torch.from_numpy(self.store.take_memory(found.rows_BK.numpy()))
        generated = self.generator.generate(questions, memory_BKMD, max_tokens=max_tokens, temperature=temperature)
        timings_s = {
            "reason": reasoned - started,
            "search": searched - reasoned,
            "generate": time.perf_counter() - searched,
        }
        return [
            Answer(text.text, sources, timings_s) for text, sources in zip(generated, self.sources(found), strict=True)
        ]

    def search(
        self, query_BX: np.ndarray, top_k: int, where: Filter | None = None, index: str = "auto"
    ) -> SearchResult:
        """The nearest rows of query vectors."""
        if where is not None:
            return ExactSearcher(self.store, self.store.rows_where(where), self._device).search(query_BX, top_k)
        if index not in self._searchers:
            self._searchers[index] = open_searcher(self.store, index, self._device)
        return self._searchers[index].search(torch.from_numpy(query_BX), top_k)

    def sources(self, found: SearchResult) -> list[tuple[Source, ...]]:
        """What stands in the rows of a search."""
        documents = iter(self.store.documents(found.rows_BK.numpy()))
        return [
            tuple(
                Source(document.doc_id, document.parent_id, document.title, score, document.text)
                for score, document in zip(scores_K, documents, strict=False)
            )
            for scores_K in found.scores_BK.tolist()
        ]
