"""Corpora into memory stores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clara_dist.cli.base import (
    ConfigFile,
    DryRun,
    FormatOption,
    IdField,
    MetadataFields,
    ModelOption,
    Overrides,
    StoreOption,
    TextField,
    TitleField,
    app,
    resolve,
)


@app.command()
def compress(
    corpus: Annotated[list[str] | None, typer.Option(help="File, directory, glob or URL; repeatable.")] = None,
    model: ModelOption = None,
    store: StoreOption = None,
    workers: Annotated[
        str | None, typer.Option(metavar="N|MIN:MAX", help="Compressor actors; 1:8 grows while all are busy.")
    ] = None,
    cpus_per_worker: Annotated[float | None, typer.Option(help="CPUs of an actor.")] = None,
    gpus_per_worker: Annotated[float | None, typer.Option(help="GPUs of an actor; 0.5 puts two on each.")] = None,
    device: Annotated[str | None, typer.Option(help="auto (GPUs if the cluster has any), cpu or cuda.")] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster; else RAY_ADDRESS, else a local Ray.")] = None,
    append: Annotated[bool, typer.Option("--append", help="Add the corpus to what the store holds.")] = False,
    on_existing: Annotated[
        str | None, typer.Option(metavar="error|skip|replace", help="With --append: documents that are there already.")
    ] = None,
    format: FormatOption = None,
    id_field: IdField = None,
    text_field: TextField = None,
    title_field: TitleField = None,
    metadata_fields: MetadataFields = None,
    metadata_column: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:TYPE", help="Metadata as a typed column, to filter by; repeatable."),
    ] = None,
    on_duplicate: Annotated[str | None, typer.Option(help="An id that stands twice: error, first or last.")] = None,
    rejects: Annotated[str | None, typer.Option(help="List of rejected rows; else STORE.rejects.jsonl.")] = None,
    max_rejects: Annotated[
        float | None, typer.Option(help="More fail the job: below 1 a fraction of all rows, else a count.")
    ] = None,
    summary: Annotated[Path | None, typer.Option(help="Write the figures of the end to this file, as JSON.")] = None,
    dry_run: DryRun = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Compress a corpus into a memory store with Ray Data. An interrupted job is resumed by the same command.

    \b
    Example:
      clara-dist compress --corpus corpus.jsonl --model models/instruct --store stores/wiki --workers 2
    """
    from clara_dist.config.compress import CompressConfig

    flags = {
        "corpus": corpus,
        "model": model,
        "store": store,
        "workers": workers,
        "cpus_per_worker": cpus_per_worker,
        "gpus_per_worker": gpus_per_worker,
        "device": device,
        "address": address,
        "format": format,
        "id_field": id_field,
        "text_field": text_field,
        "title_field": title_field,
        "metadata_fields": metadata_fields,
        "metadata_columns": metadata_column,
        "on_duplicate": on_duplicate,
        "rejects": rejects,
        "max_rejects": max_rejects,
        "append": append or None,
        "on_existing": on_existing,
    }
    settings = resolve(CompressConfig, config, overrides, flags)

    if dry_run:
        from clara_dist.distributed import dry_run as plans

        print(plans.compress(settings))
        return

    from clara_dist.distributed import compress_job

    report = compress_job.compress(settings)
    print(report)
    if summary is not None:
        summary.write_text(report.to_json() + "\n", encoding="utf-8")
