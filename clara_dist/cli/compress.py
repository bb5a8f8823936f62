"""Corpora into memory stores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clara_dist.cli.base import ConfigFile, ModelOption, Overrides, StoreOption, app, resolve


@app.command()
def compress(
    corpus: Annotated[list[str] | None, typer.Option(help="File, directory or glob; repeatable.")] = None,
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
    summary: Annotated[Path | None, typer.Option(help="Write the figures of the end to this file, as JSON.")] = None,
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
        "append": append or None,
        "on_existing": on_existing,
    }
    settings = resolve(CompressConfig, config, overrides, flags)

    from clara_dist.distributed import compress_job

    report = compress_job.compress(settings)
    print(report)
    if summary is not None:
        summary.write_text(report.to_json() + "\n", encoding="utf-8")
