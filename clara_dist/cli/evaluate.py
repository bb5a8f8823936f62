"""Evaluation."""

from __future__ import annotations

from typing import Annotated

import typer

from clara_dist.cli.base import ConfigFile, DryRun, ModelOption, Overrides, StoreOption, app, resolve


@app.command("eval")
def evaluate(
    model: ModelOption = None,
    store: StoreOption = None,
    questions: Annotated[str | None, typer.Option(help="Questions with answers and positives (jsonl).")] = None,
    output: Annotated[str | None, typer.Option(help="Directory for report, table and every answer.")] = None,
    dry_run: DryRun = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Compare the model's retrieval and answers with BM25, the untrained reasoner, the oracle and the closed book.

    \b
    Example:
      clara-dist eval --model models/joint --store stores/wiki --questions questions.jsonl --output reports/a
    """
    from clara_dist.config.evaluate import EvaluateConfig

    flags = {"model": model, "store": store, "questions": questions, "output": output}
    settings = resolve(EvaluateConfig, config, overrides, flags)

    if dry_run:
        from clara_dist.distributed import dry_run as plans

        print(plans.evaluate(settings))
        return

    from clara_dist.distributed import evaluate_job

    print(evaluate_job.evaluate(settings).table())
