"""The whole road on a Ray cluster: train the compressor, compress the corpus, train jointly, evaluate."""

from __future__ import annotations

import math
import os
from pathlib import Path

from clara_dist.config.pipeline import PipelineConfig
from clara_dist.distributed import train_job
from clara_dist.distributed.compress_job import compress
from clara_dist.distributed.evaluate_job import evaluate
from clara_dist.distributed.paths import absolute_output
from clara_dist.distributed.session import connect
from clara_dist.distributed.steps import Step, run_steps


def run(config: PipelineConfig, *, resume: bool = False, address: str | None = None) -> dict[str, float]:
    """Run all jobs of a pipeline.

    Args:
        config: The jobs.
        resume: Skip finished jobs, and go on in the middle of the one that was stopped.
        address: See `session.connect`.

    Returns:
        Seconds of each job.

    Raises:
        ClaraError: As the jobs raise, and what `run_steps` raises.
    """
    with connect(address, num_cpus=local_cpus(config)):
        run_dir = absolute_output(config.run_dir)
        seconds = run_steps(steps(config, resume=resume), run_dir, settings=config.to_yaml(), resume=resume)
    print(table(config))
    return seconds


def steps(config: PipelineConfig, *, resume: bool) -> list[Step]:
    """The jobs. With ``resume`` each goes on where it was stopped, or begins."""
    stages = ", ".join(stage.stage for stage in config.prepare.stages)
    return [
        Step("prepare", f"train: {stages}", lambda: train_job.train(config.prepare, resume=resume)),
        Step("compress", "compress the corpus", lambda: print(compress(config.compress))),
        Step("joint", "train: joint", lambda: train_job.train(config.joint, resume=resume)),
        Step("evaluate", "evaluate", lambda: evaluate(config.evaluate)),
    ]


def table(config: PipelineConfig) -> str:
    """The table of a finished pipeline."""
    return (Path(config.report_dir) / "table.txt").read_text(encoding="utf-8")


def local_cpus(config: PipelineConfig) -> int:
    """CPUs that a local Ray is given: the machine's, and at least what the largest job asks for."""
    wanted = [train_job.local_cpus(run) for run in (config.prepare, config.joint)]
    # A pool that grows runs with its least size too.
    wanted.append(config.compress.workers.least * config.compress.cpus_per_worker)
    return max(os.cpu_count() or 1, math.ceil(max(wanted)))
