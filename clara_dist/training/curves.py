"""The curves of a stage as one picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from clara_dist.training.history import StageHistory
from clara_dist.training.progress import GRADIENT_NORM, Kind
from clara_dist.training.stopwatch import PARTS

_COLOURS = ("#3366aa", "#cc5533", "#339977", "#8855aa", "#aa8833", "#557799", "#bb4477", "#777777")
# Of a step's parts: what computes in blue and green, what waits for data in warm colours, the rest in grey.
_PART_COLOURS = {
    "data": "#e3a857",
    "compress": "#88c0a8",
    "reason": "#4f9d80",
    "search": "#cc5533",
    "gather": "#e08a6d",
    "select": "#b7d3c6",
    "generate": "#7fa8d6",
    "backward": "#3366aa",
    "update": "#8855aa",
    "evaluate": "#c9a8dc",
    "checkpoint": "#999999",
    "other": "#cccccc",
}
_TIME = "time/"
_MANY = 60  # more points than this are noise, behind their running mean


def draw_stage(stage: StageHistory, path: Path) -> None:
    """Write the curves of a stage as PNG: only panels that have something to show."""
    # Slow to import, and its drawing without a display need not be chosen for the whole process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [(title, draw) for title, shown, draw in _panels(stage) if shown]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.0 * columns, 3.1 * rows + 0.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    done = max([*stage.train, *stage.eval])
    steps = f"{stage.n_steps:,} steps" if done == stage.n_steps else f"step {done:,} of {stage.n_steps:,}"
    figure.suptitle(f"{stage.key}: {steps}", fontsize=13, fontweight="bold", x=0.01, ha="left")
    for i, (title, draw) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.set_prop_cycle(color=_COLOURS)
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(color="#e4e4e4", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        draw(axes)
        axes.set_xlim(0, max(stage.n_steps, 1))
        if i >= len(panels) - columns:
            axes.set_xlabel("step", fontsize=8)
        if axes.get_legend() is None and len(axes.get_legend_handles_labels()[1]) > 1:
            axes.legend(fontsize=7, frameon=False, ncols=2, labelspacing=0.3, columnspacing=1.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _panels(stage: StageHistory) -> list[tuple[str, bool, Callable[[Any], Any]]]:
    """Title, whether there is anything to show, and what draws it."""
    shares = [*stage.names("recall@"), *stage.names("gold_in_candidates")]
    held_out = [*stage.names("recall@", "eval"), *stage.names("exact_match", "eval")]
    margins = [*stage.names("score_margin"), *stage.names("gold_margin")]
    return [
        ("loss", True, lambda axes: _loss(axes, stage)),
        ("recall and exact answers", bool(shares or held_out), lambda axes: _shares(axes, stage, shares, held_out)),
        ("gradient norm by role, before clipping", bool(stage.names(GRADIENT_NORM)), lambda a: _norms(a, stage)),
        (
            "entropy of the choice (nats)",
            bool(stage.names("score_entropy")),
            lambda a: _plot(a, stage, "score_entropy"),
        ),
        ("cosine margin of the best", bool(margins), lambda axes: _each(axes, stage, margins)),
        ("learning rate", bool(stage.names("lr")), lambda axes: axes.plot(*stage.curve("lr"), linewidth=1.6)),
        ("tokens a second, all workers", bool(stage.names("tokens_per_s")), lambda axes: _rate(axes, stage)),
        ("peak memory of a worker (GiB)", bool(stage.names("memory_gib")), lambda axes: _memory(axes, stage)),
        ("seconds of a step", bool(stage.names(_TIME)), lambda axes: _times(axes, stage)),
    ]


def _each(axes: Any, stage: StageHistory, names: list[str]) -> None:
    for name in names:
        _plot(axes, stage, name)


def _plot(axes: Any, stage: StageHistory, name: str, kind: Kind = "train", label: str | None = None) -> None:
    steps, values = stage.curve(name, kind)
    label = label or name.replace("_", " ")
    if kind == "eval":
        axes.plot(steps, values, marker="o", markersize=4, linewidth=1.8, label=label)
    elif len(steps) <= _MANY:
        axes.plot(steps, values, linewidth=1.5, label=label, marker="." if len(steps) == 1 else None)
    else:
        line = axes.plot(steps, _running_mean(values), linewidth=1.6, label=label)[0]
        axes.plot(steps, values, linewidth=0.7, alpha=0.3, color=line.get_color())


def _running_mean(values: list[float]) -> list[float]:
    """Over a window around each value, narrower at the ends."""
    reach = max(1, len(values) // 50)
    windows = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _loss(axes: Any, stage: StageHistory) -> None:
    for name in ("loss", "answer_loss", "mse"):
        if stage.names(name):
            _plot(axes, stage, name, label={"loss": "train", "mse": "mean squared error"}.get(name))
    if stage.names("loss", "eval"):
        _plot(axes, stage, "loss", "eval", label="held out")
    axes.set_ylim(bottom=0)


def _shares(axes: Any, stage: StageHistory, shares: list[str], held_out: list[str]) -> None:
    _each(axes, stage, shares)
    for name in held_out:
        _plot(axes, stage, name, "eval", label=f"{name.replace('_', ' ')}, held out")
    axes.set_ylim(-0.02, 1.02)


def _norms(axes: Any, stage: StageHistory) -> None:
    for name in stage.names(GRADIENT_NORM):
        _plot(axes, stage, name, label=name.removeprefix(GRADIENT_NORM).replace("_", " "))
    if any(value > 0 for name in stage.names(GRADIENT_NORM) for value in stage.curve(name)[1]):
        axes.set_yscale("log")


def _rate(axes: Any, stage: StageHistory) -> None:
    _plot(axes, stage, "tokens_per_s")
    axes.set_ylim(0, 1.1 * max(stage.curve("tokens_per_s")[1]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _memory(axes: Any, stage: StageHistory) -> None:
    axes.plot(*stage.curve("memory_gib"), linewidth=1.6)
    axes.set_ylim(0, 1.1 * max(stage.curve("memory_gib")[1]))


def _times(axes: Any, stage: StageHistory) -> None:
    """Stacked, in the order of a step; parts that take less than 1 % are left out."""
    totals = {part: sum(stage.curve(f"{_TIME}{part}")[1]) for part in PARTS}
    shown = [part for part in PARTS if totals[part] > 0.01 * sum(totals.values())]
    layers = [[metrics.get(f"{_TIME}{part}", 0.0) for metrics in stage.train.values()] for part in shown]
    axes.stackplot(list(stage.train), layers, labels=shown, colors=[_PART_COLOURS[part] for part in shown])
    # Room for the legend; a first step that warms everything up may be cut.
    axes.set_ylim(0, 1.6 * sorted(map(sum, zip(*layers, strict=True)))[int(0.95 * (len(stage.train) - 1))])
    axes.legend(fontsize=7, frameon=False, ncols=4, loc="upper right", labelspacing=0.3, columnspacing=1.0)
