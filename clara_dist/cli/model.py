"""Making model directories."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clara_dist.cli.base import ConfigFile, Overrides, app, resolve

if TYPE_CHECKING:
    from clara_dist.model.apple import Report


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


BaseOption = Annotated[
    str | None, typer.Option("--base", help="The base LLM, a directory or a hub id; else as the files say.")
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Print where every single tensor went.")]


@app.command("import-apple")
def import_apple(
    checkpoint: Annotated[str, typer.Argument(help="A published checkpoint: a directory or a hub id.")],
    out: Annotated[Path, typer.Option(help="Model directory to write.")],
    base: BaseOption = None,
    subfolder: Annotated[str | None, typer.Option(help="Which of several checkpoints, such as compression-16.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    verbose: Verbose = False,
) -> None:
    """Turn a published CLaRa checkpoint into a model directory. The base LLM is not loaded for it.

    \b
    Example:
      clara-dist import-apple apple/CLaRa-7B-E2E --subfolder compression-16 \
        --base mistralai/Mistral-7B-Instruct-v0.2 --out models/clara-7b
    """
    from clara_dist.model import apple

    report = apple.import_apple(checkpoint, out, base=base, subfolder=subfolder, revision=revision)
    _print_report(report, verbose)


@app.command("export-apple")
def export_apple(
    model: Annotated[Path, typer.Argument(help="Model directory.")],
    out: Annotated[Path, typer.Option(help="Directory to write in the published layout.")],
    base: BaseOption = None,
    top_k: Annotated[int, typer.Option(min=1, help="Documents that the published code answers from.")] = 5,
    verbose: Verbose = False,
) -> None:
    """Write a model in the layout of the published checkpoints, for the published code.

    \b
    Example:
      clara-dist export-apple runs/joint/joint/model --out exported/compression-16
    """
    from clara_dist.model import apple

    _print_report(apple.export_apple(model, out, base=base, generation_top_k=top_k), verbose)


def _print_report(report: Report, verbose: bool) -> None:
    if verbose:
        for tensor in report.tensors:
            print(tensor)
    print(report.summary())
