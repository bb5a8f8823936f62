"""The joint stage without one of its parts at a time: the demo's world, several seeds, one process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from clara_dist.bench import demo_runs
from clara_dist.bench.machine import describe_machine
from clara_dist.config.model import ClaraConfig
from clara_dist.config.pipeline import PipelineConfig
from clara_dist.data.demo_files import write_demo


class Start(NamedTuple):
    """What a joint stage starts from: a compressor and its store, on the seed's base."""

    name: str
    n_memory_tokens: int | None = None
    mse_weight: float | None = None


class Run(NamedTuple):
    """A joint stage that differs from the demo's own in one respect."""

    group: str
    name: str
    overrides: tuple[str, ...] = ()
    start: Start = Start("demo")


_DEMO = Run("the demo's own", "sequential, tau 0.02, K 1, mixed candidates, M 4, MSE 0.1")
# As in `bench estimators`: half of the demo's rate for twice its steps is what suits several slots.
_SLOWLY = ("optimizer.lr=0.001", "steps=500")
RUNS = (
    _DEMO,
    Run("gradient of the choice", "none (hard)", ("ablation=hard",)),
    Run("gradient of the choice", "soft mixture", ("ablation=soft",)),
    Run("gradient of the choice", "labels (contrastive)", ("ablation=contrastive",)),
    *(Run("tau", f"{tau:g}", (f"temperature={tau}",)) for tau in (0.005, 0.1, 0.5)),
    *(
        Run("documents read", f"K {k}, {estimator}", (f"top_k={k}", f"estimator={estimator}", *_SLOWLY))
        for k in (3, 5)
        for estimator in ("sequential", "leave_own_out")
    ),
    *(Run("candidates", source, (f"candidates.source={source}",)) for source in ("given", "corpus")),
    *(Run("memory tokens", f"M {m}, rate {24 // m}", (), Start(f"m{m}", n_memory_tokens=m)) for m in (1, 2, 8)),
    Run("compression loss", "without the MSE term", (), Start("no-mse", mse_weight=0.0)),
)
_COLUMNS = ("R@1", "R@3", "R@5", "EM@1", "EM@K")


@dataclass(frozen=True)
class AblationBench:
    """What to measure; see ``clara-dist bench ablations --help``.

    Attributes:
        work_dir: Worlds and models are kept there; what is finished is not done again.
        seeds: Of the worlds and of all training.
    """

    work_dir: Path
    seeds: tuple[int, ...] = (31, 32)


def run_bench(settings: AblationBench, output: Path) -> str:
    """Train and measure all, write the figures to ``output`` after each seed, and return them as text."""
    seeds: dict[int, list[dict[str, Any]]] = {}
    for seed in settings.seeds:
        seeds[seed] = list(_seed(settings.work_dir / f"seed-{seed}", seed))
        written = {
            "machine": describe_machine("cpu"),
            "settings": asdict(settings) | {"work_dir": str(settings.work_dir)},
            "seeds": seeds,
        }
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    return table(seeds)


def _seed(folder: Path, seed: int) -> Iterator[dict[str, Any]]:
    own = demo_runs.one_process(folder, seed)
    demo_runs.prepare(own, lambda data: write_demo(data, seed))
    for number, run in enumerate(RUNS):
        print(f"seed {seed}: {run.group}: {run.name}", flush=True)
        config = own
        if run.start != _DEMO.start:
            config = started_otherwise(own, folder / "starts" / run.start.name, run.start)
            demo_runs.prepare(config, lambda _: None)
        scores = demo_runs.train_and_score(config, folder / "runs" / f"{number:02d}", run.overrides)
        yield {"group": run.group, "name": run.name, "overrides": list(run.overrides), "scores": scores}


def started_otherwise(own: PipelineConfig, folder: Path, start: Start) -> PipelineConfig:
    """The demo's pipeline with another compressor on the same base, and the same data.

    Args:
        own: As `demo_runs.one_process` gives it; prepared.
        folder: Takes the other compressor and its store.
        start: How it differs.
    """
    assert isinstance(own.prepare.model, ClaraConfig), "the demo makes its model"
    model = own.prepare.model
    if start.n_memory_tokens is not None:
        model = model.model_copy(update={"n_memory_tokens": start.n_memory_tokens})
    stages = tuple(
        stage.model_copy(
            update={"output": None if stage.output is None else str(folder / "models" / stage.stage)}
            | ({} if start.mse_weight is None else {"mse_weight": start.mse_weight})
        )
        for stage in own.prepare.stages
        if stage.stage != "base"
    )
    prepare = own.prepare.model_copy(update={"run_dir": str(folder / "prepare"), "model": model, "stages": stages})
    trained = stages[-1].output
    assert trained is not None, "a pipeline says where its model goes"
    compress = own.compress.model_copy(update={"model": trained, "store": str(folder / "store")})
    (joint,) = own.joint.stages
    joint_run = own.joint.model_copy(
        update={"model": trained, "stages": (joint.model_copy(update={"store": str(folder / "store")}),)}
    )
    evaluate = own.evaluate.model_copy(update={"store": str(folder / "store")})
    changes = {"run_dir": str(folder), "prepare": prepare, "compress": compress, "joint": joint_run}
    return own.model_copy(update=changes | {"evaluate": evaluate})


def table(seeds: dict[int, list[dict[str, Any]]]) -> str:
    """Mean over the seeds, and the lowest and highest where they differ by more than .005."""
    width = max(len(run.name) for run in RUNS)
    head = " " * (width + 2) + "".join(f"{column:>20}" for column in _COLUMNS)
    lines = [f"{len(seeds)} seeds: mean (lowest - highest); held-out questions over the whole corpus", head]
    group = ""
    for number, run in enumerate(RUNS):
        if run.group != group:
            group = run.group
            lines.append(group)
        cells = [_cell([found[number]["scores"][column] for found in seeds.values()]) for column in _COLUMNS]
        lines.append(f"  {run.name:<{width}}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    low, high = min(values), max(values)
    mean = f"{fmean(values):.3f}"
    return mean if high - low <= 0.005 else f"{mean} ({low:.3f}-{high:.3f})"
