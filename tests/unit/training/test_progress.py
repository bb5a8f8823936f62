from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clara_dist.training.progress import ConsoleProgress, Progress, RunLog, step_report

SHORT = {"loss": 1.0, "grad_norm/base": 0.5}
METRICS = {"loss": 1.23456, "recall@1": 0.5, "tokens_per_s": 12345.6, "grad_norm/generator": 0.25}


def test_a_step_report_reads_as_a_line_and_survives_json() -> None:
    report = step_report("joint", 30, 120, METRICS)
    assert report.text == "joint 30/120  loss 1.23  recall@1 0.5  tokens_per_s 12,346  |grad| generator 0.25"
    assert Progress.from_json(report.to_json()) == report


def test_lines_without_a_terminal_come_from_time_to_time() -> None:
    stream, now = io.StringIO(), [0.0]
    console = ConsoleProgress(stream, every_s=10, clock=lambda: now[0])
    console(Progress("waiting"))
    for step in range(1, 8):
        now[0] = 4.0 * step
        console(step_report("joint", step, 7, {"loss": step}))
        if step == 3:
            console(step_report("joint", step, 7, {"loss": 9}, "eval"))
    assert stream.getvalue().splitlines() == [
        "waiting",
        "joint 1/7  loss 1",
        "joint 3/7  held out:  loss 9",
        "joint 4/7  loss 4  0:00:12 left",
        "joint 7/7  loss 7",
    ]


def test_the_time_left_starts_anew_behind_a_checkpoint() -> None:
    stream, now = io.StringIO(), [0.0]
    console = ConsoleProgress(stream, every_s=0, clock=lambda: now[0])
    for step, at in [(10, 0.0), (20, 10.0), (11, 500.0), (21, 510.0)]:
        now[0] = at
        console(step_report("joint", step, 30, {}))
    ends = [line.removeprefix("joint ") for line in stream.getvalue().splitlines()]
    assert ends == ["10/30", "20/30  0:00:10 left", "11/30", "21/30  0:00:09 left"]


def test_on_a_terminal_the_steps_of_a_stage_share_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    console = ConsoleProgress(stream)
    for step in (1, 2):
        console(step_report("joint", step, 2, SHORT))
    console(step_report("joint", 2, 2, {"loss": 3}, "eval"))
    console(Progress("done"))
    line = "loss 1  |grad| base 0.5"
    assert stream.getvalue() == f"\r\x1b[Kjoint 1/2  {line}\r\x1b[Kjoint 2/2  {line}\n" + (
        "\r\x1b[Kjoint 2/2  held out:  loss 3\n\r\x1b[Kdone\n"
    )


def test_tensorboard_gets_every_metric_against_the_global_step(tmp_path: Path) -> None:
    log = RunLog(tmp_path, active=True, tracker="tensorboard")
    log.open_stage("joint", {})
    log.step("joint", 10, 20, METRICS)
    log.step("joint", 20, 20, METRICS)
    log.evaluation("joint", 20, 20, {"loss": 2.5})
    log.close()
    events = EventAccumulator(str(tmp_path / "joint" / "tensorboard"))
    events.Reload()
    assert {tag: [e.step for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]} == {
        **{f"train/{name}": [10, 20] for name in METRICS},
        "eval/loss": [20],
    }
    assert events.Scalars("train/loss")[0].value == pytest.approx(1.23456)


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    log = RunLog(tmp_path, active=False, tracker="tensorboard")
    log.open_stage("joint", {})
    log.step("joint", 10, 20, METRICS)
    log.message("hello")
    assert list(tmp_path.iterdir()) == []


def test_wandb_gets_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls that W&B's client gets; offline, it takes them with its own package."""
    calls: list[tuple[str, Any]] = []
    sink = SimpleNamespace(
        define_metric=lambda *args, **kwargs: calls.append(("define", (args, kwargs))),
        log=lambda metrics: calls.append(("log", metrics)),
        finish=lambda: calls.append(("finish", None)),
    )
    monkeypatch.setitem(
        sys.modules, "wandb", SimpleNamespace(init=lambda **kwargs: calls.append(("init", kwargs)) or sink)
    )
    log = RunLog(tmp_path, active=True, tracker="wandb", name="mine")
    log.open_stage("joint", {"seed": 1})
    log.step("joint", 10, 20, {"loss": 1.5})
    log.evaluation("joint", 10, 20, {"loss": 2.5})
    log.close()
    (_, init), *rest = calls
    assert (init["group"], init["name"], init["config"]) == ("mine", "mine-joint", {"seed": 1})
    assert rest[-3:] == [
        ("log", {"global_step": 10, "train/loss": 1.5}),
        ("log", {"global_step": 10, "eval/loss": 2.5}),
        ("finish", None),
    ]
    assert ("define", (("*",), {"step_metric": "global_step"})) in rest
