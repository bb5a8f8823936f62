"""Making model directories."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clara_dist.cli.base import ConfigFile, Overrides, app, resolve


@app.command()
def init(
    out: Annotated[Path, typer.Argument(help="Model directory to write.")],
    base: Annotated[str | None, typer.Option(help="Base LLM: a local directory or a hub id.")] = None,
    seed: Annotated[int, typer.Option(help="Draws the adapters and the memory tokens.")] = 0,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Make a new, untrained model on a base LLM.

    \b
    Example:
      clara-dist init models/new --base models/Mistral-7B n_memory_tokens=16 doc_max_tokens=256
    """
    from clara_dist.config import ClaraConfig

    settings = resolve(ClaraConfig, config, overrides, {"base_model": base})

    from clara_dist.model import ClaraModel

    ClaraModel.from_base(settings, seed=seed).save_pretrained(out)
    print(f"wrote {out}")


@app.command("import-apple")
def import_apple(
    checkpoint: Annotated[Path, typer.Argument(help="A published checkpoint's directory.")],
    out: Annotated[Path, typer.Argument(help="Model directory to write.")],
    base: Annotated[str, typer.Option(help="The base LLM it was trained on: a local directory or a hub id.")],
) -> None:
    """Turn a published CLaRa checkpoint into a model directory.

    \b
    Example:
      clara-dist import-apple CLaRa-7B-E2E/compression-16 models/clara-7b --base models/Mistral-7B-Instruct-v0.2
    """
    from clara_dist.model import apple

    apple.import_apple(checkpoint, base).save_pretrained(out)
    print(f"wrote {out}")
