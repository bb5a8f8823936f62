"""The whole road: the bundled demo, and a pipeline of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from clara_dist.cli.base import DryRun, Overrides, app, resolve


@app.command()
def demo(
    work_dir: Annotated[Path, typer.Option(help="Where everything is written.")] = Path("demo-run"),
    seed: Annotated[int, typer.Option(help="Of the made-up world and of all training.")] = 1,
    variant: Annotated[
        Literal["one-hop", "multi-hop"], typer.Option(help="multi-hop: questions that take two documents.")
    ] = "one-hop",
    resume: Annotated[bool, typer.Option("--resume", help="Skip what an earlier run has finished.")] = False,
    keep_serving: Annotated[bool, typer.Option("--keep-serving", help="Leave the server up until Ctrl-C.")] = False,
    port: Annotated[int | None, typer.Option(help="Of the server; 8000, or a free one.", show_default=False)] = None,
) -> None:
    """Run the whole system on a small made-up world: train, compress, train jointly, evaluate, serve, ask.

    \b
    Example:
      clara-dist demo --work-dir demo-run --keep-serving
    """
    from clara_dist.distributed.demo import run_demo

    run_demo(work_dir, seed=seed, variant=variant, resume=resume, keep_serving=keep_serving, port=port)


@app.command()
def pipeline(
    config: Annotated[Path, typer.Option(help="YAML file with prepare, compress, joint and evaluate.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the pipeline was stopped.")] = False,
    dry_run: DryRun = False,
    overrides: Overrides = None,
) -> None:
    """Run the whole road as one job: train the compressor, compress, train jointly, evaluate.

    \b
    Example:
      clara-dist pipeline --config pipeline.yaml compress.workers=8 joint.workers=8
    """
    from clara_dist.config.pipeline import PipelineConfig

    settings = resolve(PipelineConfig, config, overrides)

    if dry_run:
        from clara_dist.distributed import dry_run as plans

        print(plans.pipeline(settings, resume=resume))
        return

    from clara_dist.distributed.pipeline import run

    run(settings, resume=resume)
