"""Questions to answers with their sources, in one process: the road that the served deployments take apart."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from clara_dist.inference.generator import Generator
from clara_dist.inference.reasoner import Reasoner
from clara_dist.model.clara import ClaraModel
from clara_dist.retrieval.search import ExactSearcher
from clara_dist.store.fingerprint import Fingerprint
from clara_dist.store.reader import MemoryStore


@dataclass(frozen=True)
class Source:
    """A document that an answer was generated from, with its cosine to the question."""

    doc_id: str
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
    """Reasoner, search and generator over one copy of the base LLM.

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
        self.searcher = ExactSearcher(store, device=clara.device)
        self.generator = Generator(clara)

    def answer(
        self, questions: Sequence[str], top_k: int = 5, max_tokens: int = 64, temperature: float = 0.0
    ) -> list[Answer]:
        """Answer questions from the ``top_k`` nearest documents of each.

        Raises:
            TokenizationError: A question is too long.
            RetrievalError: The store has fewer than ``top_k`` documents.
        """
        if not questions:
            return []
        started = time.perf_counter()
        query_BX = self.reasoner.query(questions)
        reasoned = time.perf_counter()
        found = self.searcher.search(query_BX, top_k)
        rows_BK = found.rows_BK.numpy()
        searched = time.perf_counter()
        memory_BKMD = torch.from_numpy(self.store.take_memory(rows_BK))
        generated = self.generator.generate(questions, memory_BKMD, max_tokens=max_tokens, temperature=temperature)
        timings_s = {
            "reason": reasoned - started,
            "search": searched - reasoned,
            "generate": time.perf_counter() - searched,
        }
        documents = self.store.documents(rows_BK)
        answers = []
        for row, text in enumerate(generated):
            sources = tuple(
                Source(document.doc_id, document.title, score, document.text)
                for document, score in zip(
                    documents[row * top_k : (row + 1) * top_k], found.scores_BK[row].tolist(), strict=True
                )
            )
            answers.append(Answer(text.text, sources, timings_s))
        return answers
