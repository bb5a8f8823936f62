"""Training data: checked before a cluster is started, and brought into shape."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from clara_dist.cli.base import Overrides, app
from clara_dist.cli.train import run_settings

data_app = typer.Typer(help="Check and convert training data.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")


@data_app.command("check")
def data_check(
    config: Annotated[Path, typer.Option(help="YAML file of the run, as for train.")],
    part: Annotated[
        Literal["prepare", "joint"] | None, typer.Option(help="The file is a pipeline's: which of its runs.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    overrides: Overrides = None,
) -> None:
    """Read the data of all stages as train does before it starts: names the first bad row, or prints lengths in tokens.

    Every row is read, and whether it fits is known of every one; of large data the lengths are those of a sample that
    is spread evenly over it. Nothing is written.

    \b
    Examples:
      clara-dist data check --config run.yaml
      clara-dist data check --config run.yaml stages.0.data=hotpot_train_v1.1.json stages.0.max_documents=20
    """
    settings = run_settings(config, part, overrides, planned=True)

    import json
    from dataclasses import asdict

    from clara_dist.training.data import check_run, table

    for key, stage, lengths in check_run(settings):
        print(
            json.dumps({"stage": key, "data": stage.data, **asdict(lengths)}) if as_json else table(key, stage, lengths)
        )


@data_app.command("convert")
def data_convert(
    source: Annotated[str, typer.Argument(help="A file, directory, pattern, URL, or hf://datasets/ORG/NAME?split=S.")],
    output: Annotated[str, typer.Argument(help="The jsonl file to write.")],
    format: Annotated[
        Literal["auto", "clara", "hotpotqa", "2wiki", "musique", "dpr"], typer.Option(help="The published layout.")
    ] = "auto",
) -> None:
    """Write HotpotQA, 2WikiMultiHopQA, MuSiQue, or Natural Questions as DPR has them, as CLaRa's own rows.

    One file is the corpus to compress, the rows of the instruct and joint stages, and the questions to evaluate: all
    name a document by its text, which is the paragraph's title, a line feed, and the paragraph. train and eval also
    read the published files as they are.

    \b
    Examples:
      clara-dist data convert hotpot_train_v1.1.json hotpot.jsonl
      clara-dist data convert 'hf://datasets/hotpotqa/hotpot_qa?config=distractor&split=train' hotpot.jsonl
    """
    from clara_dist.data.convert import convert

    n_rows, n_unanswerable = convert(source, output, format)
    print(f"{output}: {n_rows:,} rows" + (f", {n_unanswerable:,} of them unanswerable" if n_unanswerable else ""))
