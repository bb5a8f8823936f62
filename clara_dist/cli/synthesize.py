"""Training data from a corpus, written by a language model."""

from __future__ import annotations

from typing import Annotated

import typer

from clara_dist.cli.base import (
    ConfigFile,
    FormatOption,
    IdField,
    Overrides,
    TextField,
    app,
    resolve,
)


@app.command()
def synthesize(
    corpus: Annotated[list[str] | None, typer.Option(help="File, directory, glob or URL; repeatable.")] = None,
    output: Annotated[str | None, typer.Option(help="The rows, as JSON lines: a file or a URL.")] = None,
    base_url: Annotated[str | None, typer.Option(help="OpenAI-compatible endpoint, such as http://HOST/v1.")] = None,
    model: Annotated[str | None, typer.Option(help="The model's name at the endpoint.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Variable with the key; else OPENAI_API_KEY.")] = None,
    api_key_file: Annotated[str | None, typer.Option(help="File with the key, in place of a variable.")] = None,
    max_concurrency: Annotated[int | None, typer.Option(help="Requests under way at a time, of the whole job.")] = None,
    requests_per_minute: Annotated[float | None, typer.Option(help="Limit of the whole job.")] = None,
    tokens_per_minute: Annotated[float | None, typer.Option(help="Limit of the whole job.")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes, which share the limits.")] = None,
    max_documents: Annotated[int | None, typer.Option(help="Only the first so many of the corpus.")] = None,
    max_tokens_total: Annotated[
        int | None, typer.Option(help="Begin no document once so many are spent, earlier runs included.")
    ] = None,
    max_failures: Annotated[float | None, typer.Option(help="Fraction of documents; more are an error.")] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster; else RAY_ADDRESS, else a local Ray.")] = None,
    format: FormatOption = None,
    id_field: IdField = None,
    text_field: TextField = None,
    rejects: Annotated[str | None, typer.Option(help="List of rejected rows; else OUTPUT.rejects.jsonl.")] = None,
    max_rejects: Annotated[
        float | None, typer.Option(help="More fail the job: below 1 a fraction of all rows, else a count.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what it would take, and ask nothing.")] = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Make the compression stage's training data from a corpus, with any OpenAI-compatible endpoint.

    Of every document: simple and multi-fact question-answer pairs and paraphrases, checked for the key facts that they
    leave out, which are then asked for in further rounds. The output is what `clara-dist train` reads.

    Run the command again after any end: what is done is kept, what failed is tried again, and limits may be other ones.
    Beside OUTPUT stand OUTPUT.failures.jsonl, OUTPUT.summary.json (rows, failures, tokens) and the folder OUTPUT.work,
    which keeps every document's rows; delete it when the data is complete.

    \b
    Examples:
      clara-dist synthesize --corpus corpus.jsonl --output pairs.jsonl --base-url http://127.0.0.1:8000/v1 --model M
      clara-dist synthesize --config synthesize.yaml --max-documents 100 --dry-run
      clara-dist synthesize --config synthesize.yaml synthesis.n_simple=8 endpoint.max_retries=10
    """
    from clara_dist.config.synthesize import SynthesizeConfig

    flags = {
        "corpus": corpus,
        "output": output,
        "endpoint.base_url": base_url,
        "endpoint.model": model,
        "endpoint.api_key_env": api_key_env,
        "endpoint.api_key_file": api_key_file,
        "endpoint.max_concurrency": max_concurrency,
        "endpoint.requests_per_minute": requests_per_minute,
        "endpoint.tokens_per_minute": tokens_per_minute,
        "workers": workers,
        "max_documents": max_documents,
        "max_tokens_total": max_tokens_total,
        "max_failures": max_failures,
        "address": address,
        "format": format,
        "id_field": id_field,
        "text_field": text_field,
        "rejects": rejects,
        "max_rejects": max_rejects,
    }
    settings = resolve(SynthesizeConfig, config, overrides, flags)

    from clara_dist.distributed import synthesize_job

    print(synthesize_job.plan(settings) if dry_run else synthesize_job.synthesize(settings))
