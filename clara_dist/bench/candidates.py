"""Where the joint stage's candidates come from, compared on the demo: the same steps, the same start, three sources."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from clara_dist.bench import demo_runs
from clara_dist.bench.machine import describe_machine
from clara_dist.data.demo_files import write_demo

SOURCES = ("given", "corpus", "mixed")


def run_bench(seeds: Sequence[int], work_dir: Path, output: Path, overrides: Sequence[str] = ()) -> str:
    """Train the demo's joint stage from each source on each seed, and measure it over the whole corpus.

    Args:
        seeds: Each makes a world, a base LLM and a compressor of its own.
        work_dir: Takes the runs; what is finished there is not done again.
        output: Takes the figures.
        overrides: Settings of every joint stage, by their dotted names.

    Returns:
        The figures as text.
    """
    runs: dict[str, dict[int, dict[str, float]]] = {source: {} for source in SOURCES}
    for seed in seeds:
        config = demo_runs.one_process(work_dir / f"seed-{seed}", seed)
        demo_runs.prepare(config, lambda folder, seed=seed: write_demo(folder, seed))  # type: ignore[misc]
        for source in SOURCES:
            settings = [f"candidates.source={source}", *overrides]
            name = "-".join([source, *overrides])
            runs[source][seed] = demo_runs.train_and_score(config, work_dir / f"seed-{seed}" / "runs" / name, settings)
    figures = {"machine": describe_machine("cpu"), "overrides": list(overrides), "scores": runs}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return _table(runs)


def _table(runs: dict[str, dict[int, dict[str, float]]]) -> str:
    lines = ["candidates  seed   R@1   R@5  EM@1"]
    for source, by_seed in runs.items():
        for seed, scores in by_seed.items():
            lines.append(f"{source:10} {seed:5}{scores['R@1']:6.3f}{scores['R@5']:6.3f}{scores['EM@1']:6.3f}")
        lines.append(f"{source:10}  mean{statistics.mean(scores['R@1'] for scores in by_seed.values()):6.3f}")
    return "\n".join(lines)
