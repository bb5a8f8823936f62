"""A run's log as the curves of its stages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from clara_dist.training.progress import Kind, Progress


@dataclass
class StageHistory:
    """The reports of one stage, each step once.

    Attributes:
        key: The stage.
        n_steps: Steps that it has, or will have.
        train: Metrics by step, ascending.
        eval: Metrics of held-out examples by step, ascending.
    """

    key: str
    n_steps: int = 0
    train: dict[int, dict[str, float]] = field(default_factory=dict)
    eval: dict[int, dict[str, float]] = field(default_factory=dict)

    def add(self, report: Progress) -> None:
        """Add a report; what a stopped run had reported from this step on, and a resumed one does again, is dropped."""
        assert report.step is not None, "it is a report"
        self.n_steps = report.n_steps or 0
        for kind in ("train", "eval") if report.kind == "train" else ("eval",):
            reports = self._of("train" if kind == "train" else "eval")
            for later in [step for step in reports if step >= report.step]:
                del reports[later]
        self._of(report.kind)[report.step] = dict(report.metrics)

    def curve(self, name: str, kind: Kind = "train") -> tuple[list[int], list[float]]:
        """Steps and values of a metric, where it was reported."""
        found = [(step, metrics[name]) for step, metrics in self._of(kind).items() if name in metrics]
        return [step for step, _ in found], [value for _, value in found]

    def names(self, prefix: str, kind: Kind = "train") -> list[str]:
        """Names of the metrics that begin so, as they first came."""
        return list(dict.fromkeys(n for metrics in self._of(kind).values() for n in metrics if n.startswith(prefix)))

    def _of(self, kind: Kind) -> dict[int, dict[str, float]]:
        return self.train if kind == "train" else self.eval


@dataclass(frozen=True)
class RunHistory:
    """What a log says.

    Attributes:
        stages: In the order in which they began.
        notes: Messages that the reader of a report must know: warnings, failures, resumptions.
    """

    stages: tuple[StageHistory, ...]
    notes: tuple[str, ...]

    @classmethod
    def read(cls, lines: Iterable[str]) -> RunHistory:
        """Read the lines of a ``log.jsonl``, one event each."""
        stages: dict[str, StageHistory] = {}
        notes = []
        for line in lines:
            event = Progress.from_json(line)
            if event.stage is not None and event.step is not None:
                stages.setdefault(event.stage, StageHistory(event.stage)).add(event)
            elif event.text.startswith("WARNING") or "goes on from step" in event.text:
                notes.append(event.text)
        return cls(tuple(stages.values()), tuple(dict.fromkeys(notes)))
