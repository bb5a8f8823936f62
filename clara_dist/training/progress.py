"""What a run says about itself: one JSON line per event, TensorBoard or W&B, and a callback."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TextIO

from clara_dist.errors import ConfigError

LOG_FILE = "log.jsonl"
GRADIENT_NORM = "grad_norm/"
_CURVES = {"answer_loss", "mse", "score_margin", "gold_margin", "candidates", "examples_per_s", "memory_gib"}
Tracker = Literal["tensorboard", "wandb", "none"]
Kind = Literal["train", "eval"]


@dataclasses.dataclass(frozen=True)
class Progress:
    """One event of a run.

    Attributes:
        text: The event as a line for people.
        stage: The stage that a step report belongs to; None for a plain message.
        step: Optimiser steps done; None for a plain message.
        n_steps: Steps of the stage.
        metrics: Numbers of a step report, by name.
        kind: ``train``: means over the steps since the last report. ``eval``: of held-out examples, after this step.
    """

    text: str
    stage: str | None = None
    step: int | None = None
    n_steps: int | None = None
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    kind: Kind = "train"

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Progress:
        return cls(**json.loads(line))


OnProgress = Callable[[Progress], None]


def step_report(stage: str, step: int, n_steps: int, metrics: Mapping[str, float], kind: Kind = "train") -> Progress:
    """A report with its line: ``joint 30/120  loss 1.23  recall@1 0.52 ..  |grad| query_reasoner 0.4 ..``.

    The line leaves out what is only worth a curve.
    """
    fields = [f"{name} {_short(value)}" for name, value in metrics.items() if "/" not in name and name not in _CURVES]
    norms = [
        f"{name.removeprefix(GRADIENT_NORM)} {_short(value)}"
        for name, value in metrics.items()
        if name.startswith(GRADIENT_NORM)
    ]
    head = f"{stage} {step}/{n_steps}" + ("  held out:" if kind == "eval" else "")
    text = "  ".join([head, *fields, *([f"|grad| {', '.join(norms)}"] if norms else [])])
    return Progress(text, stage, step, n_steps, dict(metrics), kind)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


class ConsoleProgress:
    """Writes events as lines, steps with the time that is left.

    On a terminal the line of the last step renews itself. Elsewhere a stage's first and last step get lines, and others
    from time to time; evaluations and messages always.

    Args:
        stream: Where to write; stderr, so that results alone go to stdout.
        every_s: Shortest time between two lines of steps where there is no terminal.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, stream: TextIO | None = None, *, every_s: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._every_s = every_s
        self._clock = clock
        # The stage, the step and the time that rates count from; the newest step; when its last line was written.
        self._from: tuple[str | None, int, float] = None, 0, 0.0
        self._newest = 0
        self._last = float("-inf")

    def __call__(self, progress: Progress) -> None:
        is_step = progress.step is not None and progress.kind == "train"
        left = self._left(progress) if is_step else ""
        stays = not is_step or progress.step == progress.n_steps
        if self._is_terminal:
            # A line that wraps could not be renewed.
            width = shutil.get_terminal_size().columns - 1 - len(left)
            text = progress.text[:width] + left if is_step else progress.text
            self._stream.write(f"\r\x1b[K{text}" + ("\n" if stays else ""))
        elif stays or self._clock() - self._last >= self._every_s:
            self._stream.write(progress.text + left + "\n")
            self._last = self._clock() if is_step else self._last
        self._stream.flush()

    def _left(self, progress: Progress) -> str:
        """`` 0:12:30 left``, by the speed since this stage's first report here; empty where it is not known."""
        assert progress.step is not None, "it is a report"
        assert progress.n_steps is not None, "it is a report"
        stage, step, at = self._from
        now = self._clock()
        goes_back, self._newest = progress.step <= self._newest, progress.step
        if progress.stage != stage or goes_back:
            # Another stage, or the workers went back to a checkpoint: what was measured is no more the speed.
            self._from, self._last = (progress.stage, progress.step, now), float("-inf")
            return ""
        if progress.step == progress.n_steps:
            return ""
        seconds = (now - at) / (progress.step - step) * (progress.n_steps - progress.step)
        return f"  {datetime.timedelta(seconds=round(seconds))} left"


class RunLog:
    """Where rank 0 reports; other ranks get one that is silent.

    Args:
        run_dir: ``log.jsonl`` there gets every event; a driver on another machine follows the run by reading it.
        active: False on all ranks but the first.
        tracker: Where reports go besides, as ``train/*`` and ``eval/*`` against the step. Each stage is a run of its
            own there and counts its own steps from 0: another stage has another loss.
        on_progress: Gets every event.
        name: Of the run in W&B; None: the directory's.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        active: bool,
        tracker: Tracker,
        on_progress: OnProgress | None = None,
        name: str | None = None,
    ) -> None:
        self._name = name or run_dir.name
        self._active = active
        self._run_dir = run_dir
        self._tracker = tracker if active else "none"
        self._on_progress = on_progress
        self._sink: Any = None

    def message(self, text: str) -> None:
        self._emit(Progress(text))

    def open_stage(self, stage: str, settings: Mapping[str, Any], start: int = 0) -> None:
        """Start a tracker run for a stage that goes on from step ``start``; closes the one before."""
        self.close()
        if self._tracker == "tensorboard":
            # Slow to import, and only one process needs it.
            from torch.utils.tensorboard import SummaryWriter

            self._sink = SummaryWriter(str(self._run_dir / stage / "tensorboard"), purge_step=start + 1)
        elif self._tracker == "wandb":
            self._sink = _wandb_run(self._name, self._run_dir, stage, settings)

    def step(self, stage: str, step: int, n_steps: int, metrics: Mapping[str, float]) -> None:
        self._report(step_report(stage, step, n_steps, metrics))

    def evaluation(self, stage: str, step: int, n_steps: int, metrics: Mapping[str, float]) -> None:
        self._report(step_report(stage, step, n_steps, metrics, "eval"))

    def _report(self, progress: Progress) -> None:
        self._emit(progress)
        if self._sink is None:
            return
        scalars = {f"{progress.kind}/{name}": value for name, value in progress.metrics.items()}
        if self._tracker == "wandb":
            self._sink.log({"global_step": progress.step, **scalars})
            return
        for name, value in scalars.items():
            self._sink.add_scalar(name, value, global_step=progress.step)
        self._sink.flush()

    def report(self) -> None:
        """Draw the curves of the run so far; a run that cannot be drawn has been trained all the same."""
        # Imports a drawing library, which only this process needs.
        from clara_dist.training.report import REPORT, write_report

        folder = self._run_dir / "report"
        try:
            lines = (self._run_dir / LOG_FILE).read_text(encoding="utf-8").splitlines()
            write_report(lines, folder, self._name)
        except Exception as error:
            self.message(f"WARNING the report could not be written: {type(error).__name__}: {error}")
        else:
            self.message(f"curves in report/{REPORT} of the run directory")

    def close(self) -> None:
        if self._sink is not None:
            self._sink.finish() if self._tracker == "wandb" else self._sink.close()
            self._sink = None

    def _emit(self, progress: Progress) -> None:
        if not self._active:
            return
        with open(self._run_dir / LOG_FILE, "a", encoding="utf-8") as file:
            file.write(progress.to_json() + "\n")
        if self._on_progress is not None:
            self._on_progress(progress)


def _wandb_run(run: str, run_dir: Path, stage: str, settings: Mapping[str, Any]) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ConfigError("tracker = wandb needs the wandb package", hint="pip install 'clara-dist[wandb]'") from error
    sink = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "clara-dist"),
        group=run,
        name=f"{run}-{stage}",
        dir=str(run_dir),
        config=dict(settings),
    )
    # W&B's own step counts calls; a resumed run and two reports of one step need ours.
    sink.define_metric("global_step")
    sink.define_metric("*", step_metric="global_step")
    return sink
