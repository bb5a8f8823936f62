"""A corpus of five documents whose memories are unit vectors, so that every ranking can be read off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from clara_dist.data.questions import EvalQuestion


@dataclass(frozen=True)
class FakeDocument:
    doc_id: str
    title: str
    text: str


@dataclass(frozen=True)
class FakeResult:
    rows_BK: np.ndarray
    scores_BK: np.ndarray


TEXTS = {
    "oslo": "Oslo lies by a fjord",
    "rome": "Rome has seven hills",
    "lima": "Lima lies by the ocean",
    "fjord": "fjord fjord fjord",
    "bern": "Bern has bears",
}


@dataclass
class FakeStore:
    """Memory i is the i-th unit vector of R^6, as M = 2 tokens of D = 3. It is its own searcher."""

    ids: list[str] = field(default_factory=lambda: list(TEXTS))

    @property
    def n_documents(self) -> int:
        return len(self.ids)

    @property
    def n_parents(self) -> int:
        return len({doc_id.partition("#")[0] for doc_id in self.ids})

    def rows_of_documents(self, doc_ids: Sequence[str]) -> list[np.ndarray]:
        """``a`` is all of ``a#1``, ``a#2``, ..."""
        return [
            np.array([row for row, own in enumerate(self.ids) if doc_id in (own, own.partition("#")[0])], np.int64)
            for doc_id in doc_ids
        ]

    def doc_ids(self, rows: np.ndarray) -> list[str]:
        return [self.ids[row] for row in rows.tolist()]

    def documents(self, rows: np.ndarray) -> list[FakeDocument]:
        return [FakeDocument(self.ids[row], self.ids[row].title(), TEXTS[list(TEXTS)[row]]) for row in rows.tolist()]

    def take_memory(self, rows: np.ndarray) -> np.ndarray:
        return np.eye(6, dtype=np.float16)[rows].reshape(*rows.shape, 2, 3)

    def search(self, query_BX: np.ndarray, k: int) -> FakeResult:
        scores_BS = query_BX[:, : self.n_documents]
        rows_BK = np.argsort(-scores_BS, kind="stable")[:, :k]
        return FakeResult(rows_BK, np.take_along_axis(scores_BS, rows_BK, axis=1))


@dataclass
class FakeReasoner:
    """Looks the query vector up."""

    vectors: dict[str, list[float]]

    def query(self, questions: Sequence[str]) -> np.ndarray:
        return np.array([self.vectors[question] for question in questions], dtype=np.float32)


@dataclass(frozen=True)
class FakeText:
    text: str


@dataclass
class FakeGenerator:
    """Says which documents it reads, and counts what it was asked."""

    n_asked: int = 0
    largest_batch: int = 0

    def generate(
        self, questions: Sequence[str], memory_BKMD: Sequence[torch.Tensor] | None, *, max_tokens: int
    ) -> list[FakeText]:
        assert max_tokens == 7
        self.n_asked += len(questions)
        self.largest_batch = max(self.largest_batch, len(questions))
        if memory_BKMD is None:
            return [FakeText("nothing") for _ in questions]
        assert len(memory_BKMD) == len(questions)
        ids = list(TEXTS)
        return [FakeText(" ".join(ids[i] for i in m_KMD.flatten(1).argmax(1).tolist())) for m_KMD in memory_BKMD]


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def questions() -> list[EvalQuestion]:
    return [
        EvalQuestion("q1", "Which city lies by a fjord?", ("oslo",), ("oslo",), ("oslo", "rome", "fjord")),
        EvalQuestion("q2", "Which has hills?", ("rome", "Roma"), ("rome",), ("lima", "rome", "bern")),
        EvalQuestion(
            "q3", "Which two have an initial L or B?", ("lima bern",), ("lima", "bern"), ("bern", "lima", "oslo")
        ),
    ]


@pytest.fixture
def reasoner(questions: list[EvalQuestion]) -> FakeReasoner:
    #          oslo rome lima fjord bern
    rows = [[0.9, 0.1, 0.2, 1.0, 0.0, 0.0], [0.1, 0.9, 0.2, 0.3, 0.0, 0.0], [0.6, 0.7, 0.9, 0.0, 0.5, 0.0]]
    return FakeReasoner({q.question: row for q, row in zip(questions, rows, strict=True)})


@pytest.fixture
def generator() -> FakeGenerator:
    return FakeGenerator()
