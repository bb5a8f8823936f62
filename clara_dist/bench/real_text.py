"""Real passages with questions: BM25, a dense embedder, and a tiny model that is trained from scratch on them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from clara_dist.bench import demo_runs
from clara_dist.bench.machine import describe_machine
from clara_dist.bench.real_text_data import RealTextSizes, write_real_text
from clara_dist.config.pipeline import PipelineConfig
from clara_dist.config.training import StageConfig
from clara_dist.distributed.steps import Step, run_steps
from clara_dist.store.reader import MemoryStore
from clara_dist.training.loop import run as train

REPORT = "real-text.json"


@dataclass(frozen=True)
class RealTextBench:
    """What to measure; see ``clara-dist bench real-text --help``.

    Attributes:
        data: Rows of CLaRa's first stage, a passage each (see `clara_dist.bench.real_text_data`).
        out: Takes everything; what is finished there is not done again.
        embedder: A ``sentence-transformers`` model to compare with.
        scale: All stages' steps are multiplied by it.
    """

    data: str
    out: Path
    seed: int = 1
    embedder: str | None = None
    scale: float = 1.0
    sizes: RealTextSizes = field(default_factory=RealTextSizes)


class Reasoner(NamedTuple):
    """A joint stage.

    Attributes:
        name: Row of the report.
        stage: Its settings are those of this one of the configuration.
        start: Name of the one that it goes on from; None: it starts from the compressor.
        data: Reads this file instead.
    """

    name: str
    stage: int
    start: str | None = None
    data: str | None = None


_WORDS = Reasoner("words of all passages", 0)
_KNOWN_WORDS = Reasoner("words of known passages", 0, data="known-words")
_ALONE = Reasoner("answer loss alone", 1)
# Whose generator answers; its row is called as in any evaluation.
_EVALUATED = Reasoner("joint STE", 1, start=_WORDS.name)
_OTHERS = (_WORDS, _KNOWN_WORDS, _ALONE)


def run_bench(settings: RealTextBench) -> str:
    """Train and measure all, write `REPORT` into ``settings.out``, and return the figures as text.

    Raises:
        ConfigError: ``settings.out`` holds a run of other settings.
        DataError: The data is not of that layout.
    """
    config = pipeline(settings)
    data, root = settings.out / "data", settings.out
    counts = data / "counts.json"
    steps = [
        Step("data", "write the data", lambda: _write(settings, counts)),
        *(
            Step(stage.stage, f"train: {stage.stage}", partial(_prepare, config, stage))
            for stage in config.prepare.stages
        ),
        Step("compress", "compress the corpus", lambda: demo_runs.compress(config)),
        *(Step(row.name, f"train: joint, {row.name}", partial(_joint, config, row)) for row in (*_OTHERS, _EVALUATED)),
        Step("evaluate", "evaluate", lambda: _evaluate(settings, config)),
    ]
    identity = config.to_yaml() + json.dumps([settings.data, asdict(settings.sizes), settings.embedder])
    seconds = run_steps(steps, root, settings=identity, resume=(root / "steps.json").exists())
    report = Path(config.report_dir)
    written = {
        "machine": describe_machine("cpu"),
        "settings": asdict(settings) | {"data": Path(settings.data).name, "out": str(root)},
        "data": json.loads(counts.read_text(encoding="utf-8")),
        "seconds": seconds,
        "evaluation": json.loads((report / "report.json").read_text(encoding="utf-8")),
    }
    (root / REPORT).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    times = ", ".join(f"{name} {spent:.0f}" for name, spent in seconds.items())
    return f"{(report / 'table.txt').read_text(encoding='utf-8')}\nseconds: {times}"


def pipeline(settings: RealTextBench) -> PipelineConfig:
    """``jobs/configs/real-text.yaml`` in ``settings.out``, with its seed and scaled steps, in one process."""
    from clara_dist.distributed.demo import placed_pipeline  # imports Ray, which nothing here uses

    config = demo_runs.in_one_process(placed_pipeline("real-text.yaml", settings.out, settings.seed))
    runs = {
        name: run.model_copy(update={"stages": tuple(_scaled(stage, settings.scale) for stage in run.stages)})
        for name, run in {"prepare": config.prepare, "joint": config.joint}.items()
    }
    return config.model_copy(update=runs)


def _scaled(stage: StageConfig, scale: float) -> StageConfig:
    return stage.model_copy(update={"steps": max(1, round(scale * stage.steps))})


def _write(settings: RealTextBench, counts: Path) -> None:
    found = write_real_text(settings.data, counts.parent, settings.seed, settings.sizes)
    counts.write_text(json.dumps(found) + "\n", encoding="utf-8")


def _prepare(config: PipelineConfig, stage: StageConfig) -> None:
    folder = f"{config.run_dir}/{stage.stage}"
    train(config.prepare.model_copy(update={"run_dir": folder, "stages": (stage,)}), resume=True)


def _joint(config: PipelineConfig, row: Reasoner) -> None:
    stage = config.joint.stages[row.stage]
    n_rows = MemoryStore.open(config.evaluate.store).n_documents
    # Candidates are the nearest of the corpus, which may have fewer.
    candidates = stage.candidates.model_copy(update={"n": min(stage.candidates.n, n_rows)})
    changes: dict[str, Any] = {"output": _model(config, row.name), "candidates": candidates}
    if row.data is not None:
        changes["data"] = str(Path(stage.data).with_name(f"{row.data}.jsonl"))
    model = config.compress.model if row.start is None else _model(config, row.start)
    run = {"run_dir": f"{config.run_dir}/joint/{_file_name(row.name)}", "model": model}
    train(config.joint.model_copy(update={**run, "stages": (stage.model_copy(update=changes),)}), resume=True)


def _model(config: PipelineConfig, name: str) -> str:
    return f"{config.run_dir}/models/{_file_name(name)}"


def _file_name(name: str) -> str:
    return name.lower().replace(" ", "-")


def _evaluate(settings: RealTextBench, config: PipelineConfig) -> None:
    from clara_dist.distributed.evaluate_job import evaluate_model

    changes = {
        "model": _model(config, _EVALUATED.name),
        "reasoners": {row.name: _model(config, row.name) for row in _OTHERS},
        "embedder": settings.embedder,
    }
    evaluate_model(config.evaluate.model_copy(update=changes))
