"""Training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clara_dist.cli.base import Overrides, app, resolve


@app.command()
def train(
    config: Annotated[Path, typer.Option(help="YAML file of the run: model, stages, workers.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's newest checkpoint.")] = False,
    overrides: Overrides = None,
) -> None:
    """Train the stages of a run with Ray Train.

    \b
    Example:
      clara-dist train --config run.yaml run_dir=runs/a stages.0.steps=50
    """
    from clara_dist.config import TrainConfig

    settings = resolve(TrainConfig, config, overrides)

    from clara_dist.distributed import train_job

    for stage, path in train_job.train(settings, resume=resume).items():
        print(f"{stage}: {path}")
