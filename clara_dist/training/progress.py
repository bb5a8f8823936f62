"""What a run says about itself: one JSON line per event, TensorBoard or W&B, and a callback."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TextIO

from clara_dist.errors import ConfigError

LOG_FILE = "log.jsonl"
GRADIENT_NORM = "grad_norm/"
Tracker = Literal["tensorboard", "wandb", "none"]


@dataclasses.dataclass(frozen=True)
class Progress:
    """One event of a run.

    Attributes:
        text: The event as a line for people.
        stage: The stage that a step report belongs to; None for a plain message.
        step: Optimiser steps done; None for a plain message.
        n_steps: Steps of the stage.
        metrics: Numbers of a step report, by name.
    """

    text: str
    stage: str | None = None
    step: int | None = None
    n_steps: int | None = None
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Progress:
        return cls(**json.loads(line))


OnProgress = Callable[[Progress], None]


def step_report(stage: str, step: int, n_steps: int, metrics: Mapping[str, float]) -> Progress:
    """A step report with its line: ``joint 30/120  loss 1.23  recall@1 0.52 ..  |grad| query_reasoner 0.4 ..``."""
    fields = [f"{name} {_short(value)}" for name, value in metrics.items() if not name.startswith(GRADIENT_NORM)]
    norms = [
        f"{name.removeprefix(GRADIENT_NORM)} {_short(value)}"
        for name, value in metrics.items()
        if name.startswith(GRADIENT_NORM)
    ]
    text = "  ".join([f"{stage} {step}/{n_steps}", *fields, f"|grad| {', '.join(norms)}"])
    return Progress(text, stage, step, n_steps, dict(metrics))


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


class ConsoleProgress:
    """Writes events as lines; on a terminal, the line of the last step renews itself.

    Args:
        stream: Where to write; stderr, so that results alone go to stdout.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()

    def __call__(self, progress: Progress) -> None:
        if not self._is_terminal:
            self._stream.write(progress.text + "\n")
        else:
            # A line that wraps could not be renewed.
            text = progress.text[: shutil.get_terminal_size().columns - 1] if progress.step else progress.text
            stays = progress.step is None or progress.step == progress.n_steps
            self._stream.write(f"\r\x1b[K{text}" + ("\n" if stays else ""))
        self._stream.flush()


class RunLog:
    """Where rank 0 reports; other ranks get one that is silent.

    Args:
        run_dir: ``log.jsonl`` there gets every event; a driver on another machine follows the run by reading it.
        active: False on all ranks but the first.
        tracker: Where step reports go besides; each stage is a run of its own there, with metrics ``train/*``.
    """

    def __init__(self, run_dir: Path, *, active: bool, tracker: Tracker, on_progress: OnProgress | None = None) -> None:
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
            self._sink = _wandb_run(self._run_dir, stage, settings)

    def step(self, stage: str, step: int, n_steps: int, metrics: Mapping[str, float]) -> None:
        self._emit(step_report(stage, step, n_steps, metrics))
        if self._tracker == "tensorboard":
            for name, value in metrics.items():
                self._sink.add_scalar(f"train/{name}", value, global_step=step)
            self._sink.flush()
        elif self._tracker == "wandb":
            self._sink.log({f"train/{name}": value for name, value in metrics.items()}, step=step)

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


def _wandb_run(run_dir: Path, stage: str, settings: Mapping[str, Any]) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ConfigError("tracker = wandb needs the wandb package", hint="pip install 'clara-dist[wandb]'") from error
    return wandb.init(project="clara-dist", name=f"{run_dir.name}-{stage}", dir=str(run_dir), config=dict(settings))
