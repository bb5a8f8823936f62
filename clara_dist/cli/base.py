"""What all commands share: the app, its exit codes, common options, and how settings are resolved."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from clara_dist import __version__
from clara_dist.errors import ClaraError

if TYPE_CHECKING:
    from clara_dist.config import Config

ConfigT = TypeVar("ConfigT", bound="Config")

app = typer.Typer(
    help="CLaRa on a Ray cluster: compress a corpus, train retrieval and generation jointly, serve the answers.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file with the settings; flags win over it.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Any setting by its dotted name; wins over flags.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check files, data and fingerprints, say what would run; no more.")
]
ModelOption = Annotated[str | None, typer.Option("--model", help="Model directory.")]
StoreOption = Annotated[str | None, typer.Option("--store", help="Memory store: a directory or a URL.")]

# What a corpus is and where its rows have what: of every command that reads one.
FormatOption = Annotated[
    str | None,
    typer.Option("--format", help="auto, jsonl, clara, beir, flashrag, parquet, huggingface or text."),
]
IdField = Annotated[str | None, typer.Option("--id-field", help="Field of the id; none: ids from the texts.")]
TextField = Annotated[str | None, typer.Option("--text-field", help="Field of the text; a dot leads into an object.")]
TitleField = Annotated[str | None, typer.Option("--title-field", help="Field of the title.")]
MetadataFields = Annotated[
    str | None,
    typer.Option("--metadata-fields", metavar="NAME[=FIELD],...", help="Further fields to keep as metadata."),
]


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line: exit code 0, 1 for an error, 2 for wrong usage, 130 for Ctrl-C.

    Args:
        args: What stands behind the program's name; None takes it from the process.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers heeds it, too; read at its import
    try:
        app(args=args, prog_name="clara-dist")
    except ClaraError as error:
        _fail(str(error))
    except Exception as error:
        _fail(f"unexpected {type(error).__name__}: {error}\n  to do: run `clara-dist --debug ...` to see where")


def _fail(message: str) -> None:
    if os.environ.get("CLARA_DEBUG", "0") not in ("", "0"):
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


def resolve(
    cls: type[ConfigT], path: Path | None, overrides: Sequence[str] | None, flags: dict[str, Any] | None = None
) -> ConfigT:
    """The configuration: the file, then the flags that were given, then the overrides."""
    from clara_dist.config import load_config

    # JSON is YAML, so a flag's value arrives as it was typed, whatever characters it holds.
    given = [f"{key}={json.dumps(value)}" for key, value in (flags or {}).items() if value not in (None, [])]
    return load_config(cls, path, [*given, *(overrides or [])])


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"clara-dist {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from; also CLARA_DEBUG=1.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    if debug:
        os.environ["CLARA_DEBUG"] = "1"
