"""The joint stage without one of its parts at a time: the demo's world, several seeds, a process for each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, TypedDict

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
        workers: Seeds at a time, each in a process of one thread.
    """

    work_dir: Path
    seeds: tuple[int, ...] = (31, 32, 33, 34)
    workers: int = 2


class Seed(TypedDict):
    """What one seed gave, and where and when."""

    machine: dict[str, Any]
    runs: list[dict[str, Any]]


def run_bench(settings: AblationBench, output: Path) -> str:
    """Train and measure all, write the figures to ``output`` after each seed, and return them as text."""
    seeds: dict[int, Seed] = {}
    with ProcessPoolExecutor(settings.workers, mp_context=get_context("spawn")) as processes:
        running = {
            processes.submit(run_seed, settings.work_dir / f"seed-{seed}", seed): seed for seed in settings.seeds
        }
        for done in as_completed(running):
            seeds[running[done]] = done.result()
            in_order = {seed: seeds[seed] for seed in settings.seeds if seed in seeds}
            written = {
                "settings": asdict(settings) | {"work_dir": str(settings.work_dir)},
                "summary": summary(in_order),
                "seeds": in_order,
            }
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    return table(summary(in_order), len(in_order))


def run_seed(folder: Path, seed: int) -> Seed:
    """One seed's world, and every run of `RUNS` in it."""
    return {"machine": describe_machine("cpu"), "runs": list(_runs(folder, seed))}


def summary(seeds: dict[int, Seed]) -> list[dict[str, Any]]:
    """Of each of `RUNS` over the seeds, by score: mean, lowest and highest."""
    rows = []
    for number, run in enumerate(RUNS):
        row: dict[str, Any] = {"group": run.group, "name": run.name}
        for column in _COLUMNS:
            values = [seed["runs"][number]["scores"][column] for seed in seeds.values()]
            row[column] = {"mean": fmean(values), "low": min(values), "high": max(values)}
        rows.append(row)
    return rows


def _runs(folder: Path, seed: int) -> Iterator[dict[str, Any]]:
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


def table(rows: list[dict[str, Any]], n_seeds: int) -> str:
    """Of `summary`: the mean, and the lowest and highest where they differ by more than .005."""
    width = max(len(row["name"]) for row in rows)
    head = " " * (width + 2) + "".join(f"{column:>20}" for column in _COLUMNS)
    lines = [f"{n_seeds} seeds: mean (lowest - highest); held-out questions over the whole corpus", head]
    group = ""
    for row in rows:
        if row["group"] != group:
            group = row["group"]
            lines.append(group)
        lines.append(f"  {row['name']:<{width}}" + "".join(f"{_cell(**row[column]):>20}" for column in _COLUMNS))
    return "\n".join(lines)


def _cell(mean: float, low: float, high: float) -> str:
    return f"{mean:.3f}" if high - low <= 0.005 else f"{mean:.3f} ({low:.3f}-{high:.3f})"
