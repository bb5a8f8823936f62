"""Evaluation."""

from __future__ import annotations

from typing import Annotated

import typer

from clara_dist.cli.base import ConfigFile, DryRun, ModelOption, Overrides, StoreOption, app, resolve


@app.command("eval")
def evaluate(
    model: ModelOption = None,
    store: StoreOption = None,
    questions: Annotated[
        str | None, typer.Option("--questions", "--queries", help="Questions with answers and positives.")
    ] = None,
    qrels: Annotated[str | None, typer.Option(help="Their judgements, where they are a file (BEIR, TREC).")] = None,
    output: Annotated[str | None, typer.Option(help="Directory for report, table and every answer.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that share the questions.")] = None,
    resume: Annotated[bool | None, typer.Option("--resume", help="Go on with what did not end in --output.")] = None,
    dry_run: DryRun = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Compare the model's retrieval and answers with BM25, the untrained reasoner, the oracle and the closed book.

    \b
    Examples:
      clara-dist eval --model models/joint --store stores/wiki --questions questions.jsonl --output reports/a
      clara-dist eval --model models/joint --store stores/fiqa --queries fiqa/queries.jsonl --qrels fiqa/qrels/test.tsv
    """
    from clara_dist.config.evaluate import EvaluateConfig

    flags = {
        "model": model,
        "store": store,
        "questions": questions,
        "qrels": qrels,
        "output": output,
        "workers": workers,
        "resume": resume,
    }
    settings = resolve(EvaluateConfig, config, overrides, flags)

    if dry_run:
        from clara_dist.distributed import dry_run as plans

        print(plans.evaluate(settings))
        return

    from clara_dist.distributed import evaluate_job

    report = evaluate_job.evaluate(settings)
    print(f"{report.table()}\n\n{report.measures_table()}")
    for line in [*report.beside(settings.published), *evaluate_job.latency_lines(settings)]:
        print(line)
