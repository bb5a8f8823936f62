"""Corpora into memory stores."""

from __future__ import annotations

from typing import Annotated

import typer

from clara_dist.cli.base import ConfigFile, ModelOption, Overrides, StoreOption, app, resolve


@app.command()
def compress(
    corpus: Annotated[list[str] | None, typer.Option(help="File, directory or glob; repeatable.")] = None,
    model: ModelOption = None,
    store: StoreOption = None,
    workers: Annotated[int | None, typer.Option(help="Compressor actors, each with a copy of the model.")] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Compress a corpus into a memory store with Ray Data. An interrupted job is resumed by the same command.

    \b
    Example:
      clara-dist compress --corpus corpus.jsonl --model models/instruct --store stores/wiki --workers 2
    """
    from clara_dist.config.compress import CompressConfig

    flags = {"corpus": corpus, "model": model, "store": store, "workers": workers}
    settings = resolve(CompressConfig, config, overrides, flags)

    from clara_dist.distributed import compress_job

    print(compress_job.compress(settings))
