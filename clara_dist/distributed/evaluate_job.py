"""Evaluation on a Ray cluster: one task, on a GPU if there is one, so that the driver needs neither."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import ray
import torch

from clara_dist.config.evaluate import EvaluateConfig
from clara_dist.data.questions import read_questions
from clara_dist.distributed.models import load_model
from clara_dist.distributed.paths import absolute, absolute_base
from clara_dist.distributed.resources import require_room, result_of
from clara_dist.distributed.session import cluster_has_gpus, connect
from clara_dist.distributed.visibility import require_visible
from clara_dist.evaluation import Bm25Ranker, EvaluationReport, LatentRanker
from clara_dist.evaluation import evaluate as compare
from clara_dist.inference.generator import Generator
from clara_dist.inference.reasoner import Reasoner
from clara_dist.retrieval.search import ExactSearcher
from clara_dist.store.fingerprint import Fingerprint
from clara_dist.store.reader import MemoryStore

JOINT_ROW = "joint STE"


class FixedQueries:
    """Query vectors that were computed beforehand: two reasoners then take turns in one model."""

    def __init__(self, questions: Sequence[str], query_BX: np.ndarray) -> None:
        self._vectors = dict(zip(questions, query_BX, strict=True))

    def query(self, questions: Sequence[str]) -> np.ndarray:
        """The vectors of some of the questions, [B, M * D]."""
        return np.stack([self._vectors[question] for question in questions])


def evaluate(config: EvaluateConfig, *, address: str | None = None, num_cpus: int | None = None) -> EvaluationReport:
    """Evaluate a model on a cluster.

    Args:
        config: What to evaluate.
        address: See `session.connect`.
        num_cpus: CPUs of a local Ray.

    Raises:
        DataError: The questions cannot be read, or name documents that the store lacks.
        FingerprintMismatchError: Another model wrote the store.
        ClusterError: There is no room for the task, a node does not see the files, or the task failed.
    """
    config = absolute_paths(config)
    with connect(address, num_cpus=num_cpus):
        uses_gpu = config.device == "cuda" or (config.device == "auto" and cluster_has_gpus())
        each = {"CPU": config.threads, "GPU": int(uses_gpu)}
        require_room(each, 1, "the evaluation")
        require_visible(_inputs(config), None)
        # One call a process: the model's memory goes back when the report is there.
        task = ray.remote(num_cpus=each["CPU"], num_gpus=each["GPU"], max_calls=1)(evaluate_model)
        ref = task.remote(config, "cuda" if uses_gpu else "cpu")
        report: EvaluationReport = result_of(ref, each, "the evaluation")
    if config.output is not None:
        report.write(config.output)
    return report


def absolute_paths(config: EvaluateConfig) -> EvaluateConfig:
    """The configuration with local paths made absolute: the task has a working directory of its own."""
    local = {name: absolute(getattr(config, name)) for name in ("model", "store", "questions")}
    return config.model_copy(update=local | {"base_model": absolute_base(config.model, config.base_model)})


def _inputs(config: EvaluateConfig) -> list[str]:
    base = [config.base_model] if config.base_model and os.path.isdir(config.base_model) else []
    return [config.model, *base, config.store, config.questions]


def evaluate_model(config: EvaluateConfig, device: str = "cpu") -> EvaluationReport:
    """The evaluation itself; knows no cluster.

    Rows: BM25; ``untrained reasoner``, the copy of the compressor that the joint stage starts from; the model's own
    (``joint STE`` after the joint stage, else ``reasoner``); then the oracle and the closed book. The generator is the
    same in all of them.
    """
    torch.set_num_threads(config.threads)
    questions = read_questions(config.questions, config.format)
    store = MemoryStore.open(config.store, config.store_version)
    clara = load_model(config, device)
    store.require_fingerprint(Fingerprint(clara.fingerprint_fields()), f"the model {config.model}")
    texts = [question.question for question in questions]
    reasoner = Reasoner(clara)
    trained = FixedQueries(texts, reasoner.query(texts))
    clara.copy_role("compressor", "query_reasoner")
    untrained = FixedQueries(texts, reasoner.query(texts))
    searcher = ExactSearcher(store)
    return compare(
        questions,
        store,
        {
            "BM25": Bm25Ranker(store, clara.tokenizer.document_text),
            "untrained reasoner": LatentRanker(untrained, store, searcher),
            JOINT_ROW if clara.config.stage == "joint" else "reasoner": LatentRanker(trained, store, searcher),
        },
        Generator(clara),
        top_k=config.top_k,
        recall_at=config.recall_at,
        max_tokens=config.max_tokens,
    )
