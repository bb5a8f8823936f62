"""Settings of the joint stage compared where an answer needs two documents: the demo's multi-hop variant."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from clara_dist.bench import demo_runs
from clara_dist.bench.machine import describe_machine
from clara_dist.config.pipeline import PipelineConfig
from clara_dist.data.demo_files import write_demo
from clara_dist.data.questions import EvalQuestion, read_questions
from clara_dist.evaluation import Bm25Ranker, EvaluationReport, LatentRanker, evaluate
from clara_dist.evaluation.rankers import Ranker
from clara_dist.inference.generator import Generator
from clara_dist.inference.reasoner import Reasoner
from clara_dist.model.clara import ClaraModel
from clara_dist.retrieval.search import ExactSearcher
from clara_dist.store.reader import MemoryStore

_RECALL_AT = (1, 2, 3, 5)
_TRAINED = "reasoner"
_UNTRAINED = "untrained"
_BM25 = "BM25"
_ORACLE = "oracle"
_COLUMNS = ("R@1", "R@2", "R@3", "R@5", "both@K", "EM")


@dataclass(frozen=True)
class JointRun:
    """One joint stage of the comparison.

    Attributes:
        k: Documents that the generator reads.
    """

    k: int
    estimator: str

    @property
    def overrides(self) -> list[str]:
        return [f"top_k={self.k}", f"estimator={self.estimator}"]


RUNS = (
    JointRun(2, "sequential"),
    JointRun(2, "leave_own_out"),
    JointRun(3, "sequential"),
    JointRun(3, "leave_own_out"),
)


@dataclass(frozen=True)
class MultiHopBench:
    """What to measure; see ``clara-dist bench multi-hop --help``.

    Attributes:
        work_dir: Worlds and models are kept there; what is finished is not done again.
        seeds: Of the worlds and of all training.
    """

    work_dir: Path
    seeds: tuple[int, ...] = (11, 12)


def run_bench(settings: MultiHopBench, output: Path) -> str:
    """Train and measure all, write the figures to ``output``, and return them as text."""
    machine = describe_machine("cpu")
    rows = [row for seed in settings.seeds for row in _seed(settings, seed)]
    output.parent.mkdir(parents=True, exist_ok=True)
    written = {"machine": machine, "settings": asdict(settings) | {"work_dir": str(settings.work_dir)}, "rows": rows}
    output.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    return "\n".join(_table(rows))


def _seed(settings: MultiHopBench, seed: int) -> Iterator[dict[str, Any]]:
    from clara_dist.distributed.demo import demo_sizes  # imports Ray, which nothing here uses

    config = demo_runs.one_process(settings.work_dir / f"seed-{seed}", seed, variant="multi-hop")
    sizes = demo_sizes(config, "multi-hop")
    demo_runs.prepare(config, lambda folder: write_demo(folder, seed, sizes))
    for k in sorted({run.k for run in RUNS}):
        for method, scores in measure(config, config.compress.model, k, with_baselines=True).items():
            yield {"seed": seed, "k": k, "method": method} | scores
    for run in RUNS:
        print(f"seed {seed}: joint stage with K = {run.k}, {run.estimator}", flush=True)
        folder = Path(config.run_dir) / "runs" / f"k{run.k}-{run.estimator}"
        demo_runs.train_joint(config, folder, run.overrides)
        for method, scores in measure(config, demo_runs.model_dir(folder), run.k).items():
            method = run.estimator if method == _TRAINED else f"{_ORACLE} of {run.estimator}"
            yield {"seed": seed, "k": run.k, "method": method} | scores


def measure(
    config: PipelineConfig, model: str | Path, top_k: int, *, with_baselines: bool = False
) -> dict[str, dict[str, float]]:
    """Retrieval and answers over the demo's whole corpus.

    Args:
        config: A prepared demo's (see `clara_dist.bench.demo_runs`).
        model: Whose reasoner ranks and whose generator reads.
        top_k: Documents that the generator reads.
        with_baselines: Measure BM25 too, and call the reasoner untrained.

    Returns:
        For each method, and the oracle that reads both right documents: ``R@k``, the mean share of the right documents
        among the best k; ``both@K``, the share of questions with both of them among the best ``top_k``; and ``EM``.
    """
    torch.set_num_threads(config.evaluate.threads)
    # Without their candidates, the questions are asked of the whole corpus alone.
    questions = [dataclasses.replace(q, candidates=()) for q in read_questions(config.evaluate.questions)]
    store, clara = MemoryStore.open(config.evaluate.store), ClaraModel.from_pretrained(model)
    reasoner = LatentRanker(Reasoner(clara), store, ExactSearcher(store))
    rankers: dict[str, Ranker] = {_UNTRAINED if with_baselines else _TRAINED: reasoner}
    if with_baselines:
        rankers[_BM25] = Bm25Ranker(store, lambda title, text: text)
    report = evaluate(questions, store, rankers, Generator(clara), top_k=top_k, recall_at=_RECALL_AT)
    return {method: _scores(report, questions, method) for method in (*rankers, _ORACLE)}


def _scores(report: EvaluationReport, questions: list[EvalQuestion], method: str) -> dict[str, float]:
    by_id = {question.question_id: question for question in questions}
    records = [(by_id[record.question_id], record) for record in report.records if record.method == method]
    recall: Mapping[int, float] = report[method].corpus.recall or {}
    scores = {f"R@{depth}": share for depth, share in recall.items()}
    scores["both@K"] = fmean(set(question.positives) <= set(record.doc_ids) for question, record in records)
    answers = report[method].corpus.answers
    assert answers is not None, "the demo's questions have answers"
    scores["EM"] = answers.exact_match
    return scores


def _table(rows: list[dict[str, Any]]) -> Iterator[str]:
    head = f"{'K':<3}{'method':<40}{'seed':>5}" + "".join(f"{name:>{max(8, len(name) + 2)}}" for name in _COLUMNS)
    yield f"{head}\n{'-' * len(head)}"
    for row in sorted(rows, key=lambda row: row["k"]):
        cells = "".join((f"{row[name]:.3f}" if name in row else "-").rjust(max(8, len(name) + 2)) for name in _COLUMNS)
        yield f"{row['k']:<3}{row['method']:<40}{row['seed']:>5}{cells}"
