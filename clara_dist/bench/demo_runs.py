"""Runs of the demo to compare settings of the joint stage: no Ray, one process, one thread.

A demo is prepared once (world, base, compression, instruct, memory store); any number of joint stages start from it.
Everything is kept in directories, and what is finished there is not done again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from clara_dist.config import load_config
from clara_dist.config.pipeline import PipelineConfig
from clara_dist.config.training import EngineConfig, StageConfig, TrainConfig
from clara_dist.config.workers import WorkerRange
from clara_dist.data.corpus import plan_units
from clara_dist.data.demo_files import DemoVariant
from clara_dist.data.questions import read_questions
from clara_dist.distributed.steps import Step, run_steps
from clara_dist.evaluation import LatentRanker, evaluate
from clara_dist.inference.generator import Generator
from clara_dist.inference.reasoner import Reasoner
from clara_dist.model.clara import ClaraModel
from clara_dist.retrieval.search import ExactSearcher
from clara_dist.store.reader import MemoryStore
from clara_dist.training.loop import run as train

SCORES_FILE = "scores.json"
_METHOD = "reasoner"


def one_process(work_dir: str | Path, seed: int, variant: DemoVariant = "one-hop") -> PipelineConfig:
    """The demo's pipeline in ``work_dir``, on one worker and the plain torch engine."""
    from clara_dist.distributed.demo import demo_config  # imports Ray, which nothing here uses

    return in_one_process(demo_config(Path(work_dir), seed, variant))


def in_one_process(config: PipelineConfig) -> PipelineConfig:
    """A pipeline on one worker and the plain torch engine, without evaluations on the way."""
    return config.model_copy(update={"prepare": _serial(config.prepare), "joint": _serial(config.joint)})


def prepare(config: PipelineConfig, write_world: Callable[[Path], object]) -> None:
    """Make what the joint stage starts from: ``config.compress.model`` and ``config.compress.store``.

    Args:
        config: As `one_process` gives it.
        write_world: Writes the demo's files (see `clara_dist.data.demo_files`) into a directory.

    Raises:
        ConfigError: The directory holds a demo of other settings.
    """
    steps = [
        Step("world", "write the demo world", lambda: write_world(Path(config.run_dir) / "data")),
        Step("prepare", "train: base, compression, instruct", lambda: train(config.prepare, resume=True)),
        Step("compress", "compress the corpus", lambda: compress(config)),
    ]
    settings = config.prepare.to_yaml() + config.compress.to_yaml()
    run_steps(steps, config.run_dir, settings=settings, resume=(Path(config.run_dir) / "steps.json").exists())


def train_and_score(config: PipelineConfig, run_dir: str | Path, overrides: Sequence[str] = ()) -> dict[str, float]:
    """Train a joint stage on a prepared demo, and measure it on the held-out questions over the whole corpus.

    Args:
        config: As `prepare` took it; its joint stage is what ``overrides`` change.
        run_dir: Takes the run, its model (`model_dir`), and its scores.
        overrides: Settings of the stage by their dotted names, such as ``top_k=3``.

    Returns:
        `score` of the model.
    """
    stage = joint_stage(config, overrides)
    record = Path(run_dir) / SCORES_FILE
    settings = stage.model_dump(mode="json", exclude={"data", "store"})  # where things are decides nothing
    if record.exists():
        known = json.loads(record.read_text(encoding="utf-8"))
        if known["settings"] == settings:
            return dict(known["scores"])
    train_joint(config, run_dir, overrides)
    scores = score(config, model_dir(run_dir), stage.top_k)
    record.write_text(json.dumps({"settings": settings, "scores": scores}, indent=2) + "\n", encoding="utf-8")
    return scores


def train_joint(config: PipelineConfig, run_dir: str | Path, overrides: Sequence[str] = ()) -> None:
    """Train a joint stage on a prepared demo, unless ``run_dir`` holds it."""
    stage = joint_stage(config, overrides)
    train(config.joint.model_copy(update={"run_dir": str(run_dir), "stages": (stage,)}), resume=True)


def joint_stage(config: PipelineConfig, overrides: Sequence[str]) -> StageConfig:
    """The demo's joint stage with some settings changed; its model stays in the run's directory."""
    (stage,) = config.joint.stages
    fields = stage.model_dump(mode="json", exclude={"output"})
    return load_config(
        StageConfig, None, [*(f"{name}={json.dumps(value)}" for name, value in fields.items()), *overrides]
    )


def model_dir(run_dir: str | Path) -> Path:
    """Where `train_and_score` leaves its model."""
    return Path(run_dir) / "joint" / "model"


def score(config: PipelineConfig, model: str | Path, top_k: int) -> dict[str, float]:
    """Retrieval and answers of a model over the demo's whole corpus.

    Returns:
        ``R@1``, ``R@3``, ``R@5``: mean share of a question's gold documents among the best k; ``EM@1``, ``EM@K``: exact
        match where the generator reads the best document, or the best ``top_k``.
    """
    torch.set_num_threads(config.evaluate.threads)
    # Without their candidates, the questions are asked of the whole corpus alone.
    questions = [dataclasses.replace(q, candidates=()) for q in read_questions(config.evaluate.questions)]
    store = MemoryStore.open(config.evaluate.store)
    clara = ClaraModel.from_pretrained(model)
    rankers = {_METHOD: LatentRanker(Reasoner(clara), store, ExactSearcher(store))}
    scores: dict[str, float] = {}
    for name, k in {"EM@1": 1, "EM@K": top_k}.items():
        found = evaluate(questions, store, rankers, Generator(clara), top_k=k)[_METHOD].corpus
        recall: Mapping[int, float] = found.recall or {}
        scores |= {f"R@{depth}": share for depth, share in recall.items()}
        assert found.answers is not None, "the demo's questions have answers"
        scores[name] = found.answers.exact_match
    return scores


def _serial(run: TrainConfig) -> TrainConfig:
    # What is compared is measured at the end, over the whole corpus.
    stages = tuple(stage.model_copy(update={"engine": None, "evaluation": None}) for stage in run.stages)
    engine = EngineConfig(kind="torch")
    return run.model_copy(
        update={"stages": stages, "engine": engine, "workers": WorkerRange(least=1, most=1), "tracker": "none"}
    )


def compress(config: PipelineConfig) -> None:
    """Compress the corpus in this process."""
    from clara_dist.distributed.actor_pool import map_serially
    from clara_dist.distributed.compress_job import run
    from clara_dist.distributed.compress_workers import identify_model

    job = config.compress
    assert job.rows_per_shard is not None, "the pipelines of jobs/configs set it"
    units = plan_units(job.corpus, rows_per_unit=job.rows_per_shard)
    run(job, units, scan_on=map_serially, compress_on=map_serially, identify=lambda: identify_model(job))
