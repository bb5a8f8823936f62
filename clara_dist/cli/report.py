"""The report of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clara_dist.cli.base import app


@app.command()
def report(
    run_dir: Annotated[str, typer.Argument(help="Directory or URL of the run.")],
    out: Annotated[Path | None, typer.Option(help="Write there; none: RUN_DIR/report.")] = None,
) -> None:
    """Draw the curves of a training run: report.md and a PNG for each stage.

    A run writes it by itself at the end of each stage; this makes it anew of a run that is running, failed or resumed.

    \b
    Examples:
      clara-dist report runs/mistral-7b
      clara-dist report s3://bucket/runs/mistral-7b --out report
    """
    from tempfile import TemporaryDirectory

    from clara_dist.errors import DataError
    from clara_dist.store import files
    from clara_dist.training.report import REPORT, write_report
    from clara_dist.training.run_directory import RunDirectory

    directory = RunDirectory(run_dir)
    if not directory.holds_run:
        raise DataError(f"there is no training run in {run_dir}", expected="a run_dir, which has run.yaml")
    lines = directory.read_log(0).decode("utf-8").splitlines()
    target = files.join(run_dir, "report") if out is None else str(out)
    if files.is_url(target):
        with TemporaryDirectory(prefix="clara-report-") as folder:
            write_report(lines, Path(folder), run_dir)
            files.upload(Path(folder), target, last=REPORT)
    else:
        write_report(lines, Path(target), run_dir)
    print(files.join(target, REPORT))
