"""Training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clara_dist.cli.base import Overrides, app, resolve

if TYPE_CHECKING:
    from clara_dist.config import TrainConfig


@app.command()
def train(
    config: Annotated[Path, typer.Option(help="YAML file of the run: model, stages, workers.")],
    part: Annotated[
        Literal["prepare", "joint"] | None, typer.Option(help="The file is a pipeline's: which of its runs.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's newest checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan of the run, and run nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print it as JSON.")] = False,
    overrides: Overrides = None,
) -> None:
    """Train the stages of a run with Ray Train.

    --dry-run says for each stage what is trained and what is frozen, how many steps of how many examples and tokens it
    takes, and how much memory each ZeRO stage needs. It reads the data and the base's config.json, and no weights.

    \b
    Examples:
      clara-dist train --config run.yaml run_dir=runs/a stages.0.steps=50
      clara-dist train --config jobs/configs/mistral-7b.yaml --part joint --dry-run joint.workers=16
    """
    settings = run_settings(config, part, overrides, planned=dry_run)
    if dry_run:
        import json

        from clara_dist.training.plan import measure, plan_run, table, to_json

        plan = plan_run(settings, measure(settings))
        print(json.dumps(to_json(plan), indent=2) if as_json else table(plan))
        return

    from clara_dist.distributed import train_job

    for stage, path in train_job.train(settings, resume=resume).items():
        print(f"{stage}: {path}")


def run_settings(
    config: Path, part: Literal["prepare", "joint"] | None, overrides: list[str] | None, *, planned: bool
) -> TrainConfig:
    """The run that a file describes, a run of its own or a part of a pipeline; a `planned` one needs no model yet."""
    from clara_dist.config import TrainConfig
    from clara_dist.config.pipeline import PipelineConfig

    if part is None:
        return resolve(TrainConfig, config, overrides)
    pipeline = resolve(PipelineConfig, config, overrides)
    if part == "prepare":
        return pipeline.prepare
    return pipeline.planned_joint if planned else pipeline.joint
