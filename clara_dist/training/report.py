"""The report of a run: its curves and figures, made of its log."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from clara_dist.errors import DataError
from clara_dist.training.curves import draw_stage
from clara_dist.training.history import RunHistory, StageHistory
from clara_dist.training.progress import GRADIENT_NORM, Kind
from clara_dist.training.stopwatch import PARTS

REPORT = "report.md"


def write_report(log_lines: Iterable[str], folder: Path, name: str) -> None:
    """Write ``report.md`` and, for each stage, ``<stage>.png``.

    Args:
        log_lines: Of a run that is finished, running or failed; steps that a resumed run repeated count once.
        folder: Where to write; made if it is not there.
        name: Of the run, for the title.

    Raises:
        DataError: The log has no report of any step.
    """
    history = RunHistory.read(log_lines)
    if not history.stages:
        raise DataError(f"the log of {name} has no step yet", hint="wait for the first step")
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"# Training run {name}"]
    for stage in history.stages:
        draw_stage(stage, folder / f"{stage.key}.png")
        parts += [f"## {stage.key}", _table(stage), f"![curves of {stage.key}]({stage.key}.png)"]
    if history.notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in history.notes)]
    (folder / REPORT).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _table(stage: StageHistory) -> str:
    """First, last and best of what says whether training works; then means of what it costs."""
    rows = ["| metric | first | last | best (step) |", "|---|---:|---:|---:|"]
    kinds: tuple[Kind, ...] = ("train", "eval")
    for kind in kinds:
        for metric in stage.names("", kind):
            if "/" not in metric or metric.startswith(GRADIENT_NORM):
                rows.append(_row(stage, metric, kind))
    return "\n".join([*rows, "", _costs(stage)])


def _row(stage: StageHistory, metric: str, kind: Kind) -> str:
    steps, values = stage.curve(metric, kind)
    best = "-"
    finite = [(value, step) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
    if finite and metric in ("loss", "answer_loss", "mse"):
        best = "{:.4g} ({})".format(*min(finite))
    elif finite and (metric.startswith("recall@") or metric == "exact_match"):
        best = "{:.4g} ({})".format(*max(finite, key=lambda pair: (pair[0], -pair[1])))
    return f"| {kind}/{metric} | {values[0]:.4g} | {values[-1]:.4g} | {best} |"


def _costs(stage: StageHistory) -> str:
    parts = {part: stage.curve(f"time/{part}")[1] for part in PARTS}
    means = {part: sum(values) / len(stage.train) for part, values in parts.items() if values and stage.train}
    whole = sum(means.values())
    if not whole:
        return ""
    split = ", ".join(f"{part} {mean / whole:.0%}" for part, mean in means.items() if mean / whole >= 0.005)
    return f"A step takes {whole:.3g} s (mean over reports): {split}."
