"""A worker of an evaluation: its methods, its generator, and what it makes of some questions; knows no cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from clara_dist.config.evaluate import EvaluateConfig
from clara_dist.data.questions import EvalQuestion
from clara_dist.distributed.models import load_model
from clara_dist.evaluation import AnswerRecord, Bm25Ranker, LatentRanker, Ranking
from clara_dist.evaluation.dense import DenseRanker, Reranker, load_cross_encoder, load_embedder
from clara_dist.evaluation.evaluate import answer_records
from clara_dist.evaluation.latency import ask_alone
from clara_dist.evaluation.rankers import Ranker
from clara_dist.inference.generator import GeneratedText, Generator
from clara_dist.inference.reasoner import GuestReasoner, Reasoner
from clara_dist.model.clara import ClaraModel
from clara_dist.model.files import fingerprint_fields, read_role
from clara_dist.retrieval.search import ExactSearcher
from clara_dist.store.fingerprint import Fingerprint
from clara_dist.store.reader import MemoryStore

JOINT_ROW = "joint STE"

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Piece:
    """What a worker makes of some questions.

    Attributes:
        records: Their records, of all methods and scopes.
        seconds: Spent by what: a method's name, or ``answers``.
        n_documents: Of the store, before long ones were split.
        n_passages: Rows of the store.
        alone: Seconds of questions that were asked one at a time, see `ask_alone`.
    """

    records: list[AnswerRecord]
    seconds: dict[str, float]
    n_documents: int
    n_passages: int
    alone: list[tuple[float, float, float]]


@dataclass(frozen=True)
class Task:
    """Questions for one worker; the first ``n_alone`` are asked one at a time as well."""

    questions: Sequence[EvalQuestion]
    n_alone: int


class Evaluator:
    """Asks questions, with a model of its own.

    Rows of the report: BM25, and where asked for an embedder and a reranker; ``untrained reasoner``, the compressor, of
    which the joint stage starts with a copy; those of ``reasoners``; the model's own (``joint STE`` after the joint
    stage, else ``reasoner``); then the oracle, the closed book and, where asked for, text RAG. The generator is
    the same in all of them.

    Args:
        config: What to evaluate.
        device: ``cpu`` or ``cuda``.

    Raises:
        FingerprintMismatchError: Another model wrote the store, or a reasoner belongs to another base or compressor.
    """

    def __init__(self, config: EvaluateConfig, device: str) -> None:
        torch.set_num_threads(config.threads)
        self._config = config
        self._store = MemoryStore.open(config.store, config.store_version)
        clara = load_model(config, device)
        self._store.require_fingerprint(Fingerprint(clara.fingerprint_fields()), f"the model {config.model}")
        self._searcher = ExactSearcher(self._store)
        self._reasoner = Reasoner(clara)
        self._generator = Generator(clara)
        own = JOINT_ROW if clara.config.stage == "joint" else "reasoner"
        text = clara.tokenizer.document_text
        bm25 = Bm25Ranker(self._store, text)
        self._rankers: dict[str, Ranker] = {"BM25": bm25}
        if config.embedder is not None:
            self._rankers["embedder"] = DenseRanker(self._store, load_embedder(config.embedder, device), text)
        if config.reranker is not None:
            self._rankers["reranker"] = Reranker(self._store, bm25, load_cross_encoder(config.reranker, device), text)
        self._rankers |= {
            "untrained reasoner": LatentRanker(Reasoner(clara, role="compressor"), self._store, self._searcher),
            **self._guests(clara),
            own: LatentRanker(self._reasoner, self._store, self._searcher),
        }
        self._text_reader = TextGenerator(self._generator) if config.text_rag else None

    def _guests(self, clara: ClaraModel) -> dict[str, Ranker]:
        """The rows of ``config.reasoners``; the store's fingerprint says whether base and compressor are the same."""
        guests: dict[str, Ranker] = {}
        for name, directory in self._config.reasoners.items():
            path = Path(directory)
            require_guest(self._store.fingerprint, self._config, name)
            reasoner = GuestReasoner(clara, read_role(path, "query_reasoner"))
            guests[name] = LatentRanker(reasoner, self._store, self._searcher)
        return guests

    def __call__(self, task: Task) -> Piece:
        config, seconds = self._config, dict.fromkeys([*self._rankers, "answers"], 0.0)
        records = answer_records(
            task.questions,
            self._store,
            {name: _TimedRanker(ranker, name, seconds) for name, ranker in self._rankers.items()},
            _TimedGenerator(self._generator, seconds),
            top_k=config.top_k,
            recall_at=config.recall_at,
            max_tokens=config.max_tokens,
            text_reader=self._text_reader,
        )
        return Piece(records, seconds, self._store.n_parents, self._store.n_documents, self._alone(task))

    def _alone(self, task: Task) -> list[tuple[float, float, float]]:
        if not task.n_alone:
            return []
        return ask_alone(
            task.questions[: task.n_alone],
            self._reasoner,
            self._searcher,
            self._store,
            self._generator,
            top_k=self._config.top_k,
            max_tokens=self._config.max_tokens,
        )


def require_guest(store: Fingerprint, config: EvaluateConfig, name: str) -> None:
    """Refuse a model of ``config.reasoners`` whose base or compressor is not that of the store.

    Raises:
        FingerprintMismatchError: Naming what differs.
        ModelError: Its files cannot be read.
    """
    directory = config.reasoners[name]
    fields = fingerprint_fields(Path(directory), base_model=config.base_model, quantization=config.quantization)
    store.require_match(Fingerprint(fields), f"the store {config.store}", f"the reasoner {name} ({directory})")


@dataclass(frozen=True)
class TextGenerator:
    """The generator over the documents' text in place of their memories."""

    generator: Generator

    def answer(
        self, questions: Sequence[str], texts_BK: Sequence[Sequence[str]], *, max_tokens: int
    ) -> list[GeneratedText]:
        """One answer for each question.

        Raises:
            TokenizationError: Question and texts together are longer than ``max_prompt_tokens``.
        """
        tokenizer = self.generator.clara.tokenizer
        prompts = [tokenizer.text_prompt(question, texts) for question, texts in zip(questions, texts_BK, strict=True)]
        return self.generator.generate_ids(prompts, max_tokens=max_tokens)


@dataclass(frozen=True)
class _TimedRanker:
    """Counts a method's seconds."""

    ranker: Ranker
    name: str
    seconds: dict[str, float]

    def among_candidates(self, questions: Sequence[EvalQuestion], depth: int) -> list[Ranking]:
        return self.ranker.among_candidates(questions, depth)

    def in_corpus(self, questions: Sequence[EvalQuestion], depth: int) -> list[Ranking]:
        return _timed(self.seconds, self.name, lambda: self.ranker.in_corpus(questions, depth))


@dataclass(frozen=True)
class _TimedGenerator:
    """Counts the seconds of answers."""

    generator: Generator
    seconds: dict[str, float]

    def generate(self, questions: Sequence[str], memory_BKMD: Any, *, max_tokens: int) -> list[GeneratedText]:
        return _timed(
            self.seconds,
            "answers",
            lambda: self.generator.generate(questions, memory_BKMD, max_tokens=max_tokens),
        )


def _timed(seconds: dict[str, float], name: str, work: Callable[[], ResultT]) -> ResultT:
    started = time.perf_counter()
    result = work()
    seconds[name] += time.perf_counter() - started
    return result
