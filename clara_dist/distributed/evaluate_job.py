"""Evaluation on a Ray cluster: questions in pieces over workers, each with a model of its own; resumable."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from clara_dist.config.evaluate import EvaluateConfig
from clara_dist.data.qrels import read_judged
from clara_dist.data.questions import EvalQuestion, read_questions
from clara_dist.distributed.actor_pool import ActorPool, Mapper, map_serially
from clara_dist.distributed.models import load_model
from clara_dist.distributed.paths import absolute, absolute_base, absolute_output
from clara_dist.distributed.progress import Progress
from clara_dist.distributed.resources import require_room
from clara_dist.distributed.session import cluster_has_gpus, connect
from clara_dist.distributed.visibility import require_visible
from clara_dist.errors import ConfigError
from clara_dist.evaluation import AnswerRecord, Bm25Ranker, EvaluationReport, LatentRanker, Ranking
from clara_dist.evaluation.dense import DenseRanker, Reranker, load_cross_encoder, load_embedder
from clara_dist.evaluation.evaluate import answer_records, facts_of, scopes_of
from clara_dist.evaluation.html import write_html
from clara_dist.evaluation.latency import ask_alone, percentiles
from clara_dist.evaluation.rankers import Ranker
from clara_dist.evaluation.records import ANSWERS, read_records, write_records
from clara_dist.inference.generator import GeneratedText, Generator
from clara_dist.inference.reasoner import Reasoner
from clara_dist.retrieval.search import ExactSearcher
from clara_dist.store.fingerprint import Fingerprint
from clara_dist.store.manifest import read_manifest
from clara_dist.store.reader import MemoryStore
from clara_dist.store.storage import open_storage

JOINT_ROW = "joint STE"
PARTS = "parts"
LATENCY = "latency.json"
_SETTINGS = "settings.json"
_ALONE = "alone.json"
# What decides neither a figure nor how questions are cut.
_WHERE = {"output", "resume", "workers", "device", "threads", "published", "latency_questions"}

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
    """The worker; knows no cluster.

    Rows of the report: BM25, and where asked for an embedder and a reranker; ``untrained reasoner``, the compressor, of
    which the joint stage starts with a copy; the model's own (``joint STE`` after the joint stage, else ``reasoner``);
    then the oracle, the closed book and, where asked for, text RAG. The generator is the same in all of them.

    Args:
        config: What to evaluate.
        device: ``cpu`` or ``cuda``.

    Raises:
        FingerprintMismatchError: Another model wrote the store.
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
            own: LatentRanker(self._reasoner, self._store, self._searcher),
        }
        self._text_reader = TextGenerator(self._generator) if config.text_rag else None

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


def evaluate(config: EvaluateConfig, *, address: str | None = None, num_cpus: int | None = None) -> EvaluationReport:
    """Evaluate a model on a cluster.

    Args:
        config: What to evaluate.
        address: See `session.connect`.
        num_cpus: CPUs of a local Ray.

    Raises:
        DataError: The questions cannot be read, or name documents that the store lacks.
        FingerprintMismatchError: Another model wrote the store.
        ConfigError: ``output`` holds an unfinished evaluation of something else.
        ClusterError: There is no room for a worker, a node does not see the files, or a worker failed.
    """
    config = absolute_paths(config)
    with connect(address, num_cpus=num_cpus):
        uses_gpu = config.device == "cuda" or (config.device == "auto" and cluster_has_gpus())
        each = {"CPU": config.threads, "GPU": int(uses_gpu)}
        require_room(each, config.workers, "the evaluation")
        require_visible(inputs(config), None)
        pool = ActorPool(config.workers, num_cpus=each["CPU"], num_gpus=each["GPU"])
        return evaluate_on(pool, config, "cuda" if uses_gpu else "cpu")


def evaluate_model(config: EvaluateConfig, device: str = "cpu") -> EvaluationReport:
    """The evaluation in this process; knows no cluster."""
    return evaluate_on(map_serially, config, device)


def evaluate_on(pool: Mapper, config: EvaluateConfig, device: str) -> EvaluationReport:
    """The evaluation on whatever runs workers; raises as `evaluate` does."""
    questions = questions_of(config)
    scopes_of(questions, config.top_k)  # what cannot be evaluated is told before any worker starts
    n = config.questions_per_task
    tasks = [
        Task(questions[start : start + n], 0 if start else config.latency_questions)
        for start in range(0, len(questions), n)
    ]
    parts = None if config.output is None else Path(config.output) / PARTS
    if parts is not None and config.resume and _is_finished(parts.parent, config, questions):
        return _report(config, questions, read_records(parts.parent / ANSWERS), None)
    done = {} if parts is None else _resumed(parts, config, questions)
    todo = [index for index in range(len(tasks)) if index not in done]
    records = {index: read_records(path) for index, path in done.items()}
    seconds: dict[str, float] = {}
    n_asked = 0
    documents = None
    bar = Progress("questions", len(questions))
    bar.skip(sum(len(tasks[index].questions) for index in done))
    for position, piece in pool(Evaluator, {"config": config, "device": device}, [tasks[i] for i in todo]):
        index = todo[position]
        records[index] = piece.records
        documents = piece.n_documents, piece.n_passages
        n_asked += len(tasks[index].questions)
        for name, spent in piece.seconds.items():
            seconds[name] = seconds.get(name, 0.0) + spent
        if parts is not None:
            if piece.alone:
                (parts / _ALONE).write_text(json.dumps(percentiles(piece.alone)), encoding="utf-8")
            write_records(piece.records, parts / f"{index:06d}.parquet")
        bar.add(len(tasks[index].questions))
    report = _report(config, questions, [r for index in sorted(records) for r in records[index]], documents)
    if parts is not None:
        report.write(parts.parent)
        _write_latency(parts, seconds, n_asked)
        write_html(report, parts.parent / "report.html", latency_lines(config))
        (parts / _SETTINGS).replace(parts.parent / _SETTINGS)
        shutil.rmtree(parts)
    return report


def _report(
    config: EvaluateConfig,
    questions: Sequence[EvalQuestion],
    records: Sequence[AnswerRecord],
    documents: tuple[int, int] | None,
) -> EvaluationReport:
    """The report of all records; ``documents`` as `Piece` counts them, None: look them up."""
    if documents is None:
        store = MemoryStore.open(config.store, config.store_version)
        documents = store.n_parents, store.n_documents
    facts = facts_of(questions, *documents, scopes_of(questions, config.top_k), config.top_k, config.max_tokens)
    return EvaluationReport.of(records, config.recall_at, **facts)


def _is_finished(output: Path, config: EvaluateConfig, questions: Sequence[EvalQuestion]) -> bool:
    record = output / _SETTINGS
    return record.exists() and record.read_text(encoding="utf-8") == _settings(config, questions)


def _write_latency(parts: Path, seconds: dict[str, float], n_asked: int) -> None:
    """In batches, as the evaluation asks (only what this run asked), and one at a time."""
    alone = parts / _ALONE
    text = json.dumps(
        {
            "ms_per_question": {name: 1e3 * spent / n_asked for name, spent in seconds.items()} if n_asked else {},
            "questions": n_asked,
            "alone": json.loads(alone.read_text(encoding="utf-8")) if alone.exists() else None,
        },
        indent=2,
    )
    (parts.parent / LATENCY).write_text(text + "\n", encoding="utf-8")


def latency_lines(config: EvaluateConfig) -> list[str]:
    """What a finished evaluation wrote of questions that were asked one at a time, for people."""
    if config.output is None:
        return []
    alone = json.loads((Path(config.output) / LATENCY).read_text(encoding="utf-8"))["alone"]
    if alone is None:
        return []
    steps = (f"{step} {' / '.join(f'{value:.1f}' for value in ms.values())}" for step, ms in alone["ms"].items())
    return [f"ms a question (p50 / p90 / p99 of {alone['questions']} asked one at a time): {'; '.join(steps)}"]


def questions_of(config: EvaluateConfig) -> list[EvalQuestion]:
    """The questions, with the judgements of a file of their own where there is one.

    Raises:
        DataError: They cannot be read.
    """
    if config.qrels is not None:
        return read_judged(config.questions, config.qrels)
    return read_questions(config.questions, config.format)


def absolute_paths(config: EvaluateConfig) -> EvaluateConfig:
    """The configuration with local paths made absolute: workers have a working directory of their own."""
    names = ("model", "store", "questions", "qrels")
    local = {name: absolute(getattr(config, name)) for name in names if getattr(config, name) is not None}
    if config.output is not None:
        local["output"] = absolute_output(config.output)
    return config.model_copy(update=local | {"base_model": absolute_base(config.model, config.base_model)})


def inputs(config: EvaluateConfig) -> list[str]:
    """What the nodes must see; the questions are read by the driver."""
    base = [config.base_model] if config.base_model and os.path.isdir(config.base_model) else []
    return [config.model, *base, config.store]


def _resumed(parts: Path, config: EvaluateConfig, questions: Sequence[EvalQuestion]) -> dict[int, Path]:
    """What an earlier run of the same evaluation has finished, by task; ``parts`` is made ready."""
    settings = _settings(config, questions)
    record = parts / _SETTINGS
    if config.resume and record.exists():
        if record.read_text(encoding="utf-8") != settings:
            raise ConfigError(
                "the unfinished evaluation there is of something else",
                got=f"other settings, questions, model or store than in {record}",
                hint="evaluate into another output, or without resume",
            )
        return {int(path.stem): path for path in parts.glob("*.parquet")}
    shutil.rmtree(parts, ignore_errors=True)
    (parts.parent / _SETTINGS).unlink(missing_ok=True)  # what stands there is about to be replaced
    parts.mkdir(parents=True)
    record.write_text(settings, encoding="utf-8")
    return {}


def _settings(config: EvaluateConfig, questions: Sequence[EvalQuestion]) -> str:
    """All that decides the report, as text."""
    asked = hashlib.sha256(json.dumps([asdict(question) for question in questions]).encode()).hexdigest()
    weights = hashlib.sha256()
    if os.path.isdir(config.model):
        for path in sorted(Path(config.model).rglob("*.safetensors")):
            weights.update(str(path.relative_to(config.model)).encode())
            weights.update(path.read_bytes())
    manifest = read_manifest(open_storage(config.store), config.store_version)
    identity = {
        "settings": config.model_dump(mode="json", exclude=_WHERE),
        "questions": asked,
        "weights": weights.hexdigest(),
        "store": manifest.commit_id,
    }
    return json.dumps(identity, indent=2, sort_keys=True) + "\n"


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
