"""Evaluation."""

from __future__ import annotations

import json
from typing import Annotated, Any

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
    suite: Annotated[
        str | None, typer.Option(help="Several data sets: a name, a YAML file, or `list` for the names.")
    ] = None,
    dry_run: DryRun = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Compare the model's retrieval and answers with BM25, the untrained reasoner, the oracle and the closed book.

    \b
    Examples:
      clara-dist eval --model models/joint --store stores/wiki --questions questions.jsonl --output reports/a
      clara-dist eval --model models/joint --store stores/fiqa --queries fiqa/queries.jsonl --qrels fiqa/qrels/test.tsv
      clara-dist eval --suite paper-cr4 --model models/clara-cr4 datasets.nq.questions=nq-open.jsonl
    """
    from clara_dist.config.evaluate import EvaluateConfig

    if suite is not None:
        if (store, questions, qrels, config) != (None, None, None, None):
            raise typer.BadParameter("a suite's data sets have stores and questions of their own", param_hint="--suite")
        shared = {"model": model, "workers": workers, "resume": resume}
        _evaluate_suite(suite, output, shared, overrides, dry_run)
        return

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


def _evaluate_suite(
    name: str, output: str | None, shared: dict[str, Any], overrides: list[str] | None, dry_run: bool
) -> None:
    from clara_dist.config.suite import read_suite, suite_names

    if name == "list":
        for known in suite_names():
            print(f"{known:12} {read_suite(known).about}")
        return
    flags = {"output": output} | {f"settings.{key}": value for key, value in shared.items()}
    given = [f"{key}={json.dumps(value)}" for key, value in flags.items() if value is not None]
    suite = read_suite(name, [*given, *(overrides or [])])

    if dry_run:
        from clara_dist.distributed import dry_run as plans

        for dataset, settings in suite.evaluations().items():
            print(f"{dataset}\n{plans.evaluate(settings)}\n")
        return

    from clara_dist.distributed.evaluate_suite import evaluate_suite, suite_text

    print("\n" + suite_text(evaluate_suite(suite), suite.evaluations()))
    print(f"\n{suite.output}/index.html has all of it")
