"""The report of a run from its log."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from clara_dist.errors import DataError
from clara_dist.training.history import RunHistory
from clara_dist.training.progress import Progress, step_report
from clara_dist.training.report import write_report


def train(step: int, loss: float) -> Progress:
    metrics = {"loss": loss, "lr": 1e-3, "tokens_per_s": 100.0, "memory_gib": 1.0, "grad_norm/generator": 0.5}
    return step_report("joint", step, 6, metrics | {"time/reason": 0.1, "time/backward": 0.3})


def held_out(step: int, loss: float) -> Progress:
    return step_report("joint", step, 6, {"loss": loss, "recall@1": 1 / loss}, "eval")


# Killed behind step 5, goes on from the checkpoint of step 2.
RESUMED = [
    Progress("waiting"),
    held_out(0, 9.0),
    *[train(step, 10.0 - step) for step in (1, 2, 3)],
    held_out(3, 99.0),
    *[train(step, 99.0) for step in (4, 5)],
    Progress("stage joint: goes on from step 2"),
    train(3, 7.0),
    held_out(3, 6.0),
    train(4, 6.0),
]


def lines(events: list[Progress]) -> list[str]:
    return [event.to_json() for event in events]


def test_steps_that_were_repeated_appear_once_and_lost_ones_not_at_all() -> None:
    history = RunHistory.read(lines(RESUMED))
    (stage,) = history.stages
    assert stage.curve("loss") == ([1, 2, 3, 4], [9.0, 8.0, 7.0, 6.0])
    assert stage.curve("loss", "eval") == ([0, 3], [9.0, 6.0])
    assert history.notes == ("stage joint: goes on from step 2",)


def test_the_report_has_figures_and_a_picture(tmp_path: Path) -> None:
    write_report(lines(RESUMED), tmp_path / "report", "mine")
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "| train/loss | 9 | 6 | 6 (4) |" in text
    assert "| eval/recall@1 | 0.1111 | 0.1667 | 0.1667 (3) |" in text
    assert "A step takes 0.4 s (mean over reports): reason 25%, backward 75%." in text
    assert "![curves of joint](joint.png)" in text
    picture = (tmp_path / "report" / "joint.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", picture[16:24])
    assert (width, height) > (1000, 500)


def test_a_log_without_steps_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no step yet"):
        write_report(lines([Progress("waiting")]), tmp_path, "mine")
