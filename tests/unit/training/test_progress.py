from __future__ import annotations

import io
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clara_dist.training.metrics import Interval
from clara_dist.training.progress import ConsoleProgress, Progress, RunLog, step_report

SHORT = {"loss": 1.0, "grad_norm/base": 0.5}
METRICS = {"loss": 1.23456, "recall@1": 0.5, "tokens_per_s": 12345.6, "grad_norm/generator": 0.25}


def test_a_step_report_reads_as_a_line_and_survives_json() -> None:
    report = step_report("joint", 30, 120, METRICS)
    assert report.text == "joint 30/120  loss 1.23  recall@1 0.5  tokens_per_s 12,346  |grad| generator 0.25"
    assert Progress.from_json(report.to_json()) == report


def test_lines_without_a_terminal() -> None:
    stream = io.StringIO()
    console = ConsoleProgress(stream)
    console(Progress("waiting"))
    console(step_report("joint", 1, 2, SHORT))
    assert stream.getvalue() == "waiting\njoint 1/2  loss 1  |grad| base 0.5\n"


def test_on_a_terminal_the_steps_of_a_stage_share_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    console = ConsoleProgress(stream)
    for step in (1, 2):
        console(step_report("joint", step, 2, SHORT))
    console(Progress("done"))
    line = "loss 1  |grad| base 0.5"
    assert stream.getvalue() == f"\r\x1b[Kjoint 1/2  {line}\r\x1b[Kjoint 2/2  {line}\n\r\x1b[Kdone\n"


def test_intervals_are_means_over_steps_and_over_questions() -> None:
    interval = Interval()
    interval.add({"loss": 1.0}, recall_sum=1.0, recall_count=1, tokens=10)
    interval.add({"loss": 2.0}, recall_sum=0.0, recall_count=3, tokens=10)
    metrics = interval.metrics(top_k=5)
    assert metrics["loss"] == 1.5
    assert metrics["recall@5"] == 0.25
    assert metrics["tokens_per_s"] > 0
    no_positives = Interval()
    no_positives.add({"loss": 1.0}, 0.0, 0, tokens=1)
    assert "recall@5" not in no_positives.metrics(top_k=5)


def test_tensorboard_gets_every_metric_against_the_global_step(tmp_path: Path) -> None:
    log = RunLog(tmp_path, active=True, tracker="tensorboard")
    log.open_stage("joint", {})
    log.step("joint", 10, 20, METRICS)
    log.step("joint", 20, 20, METRICS)
    log.close()
    events = EventAccumulator(str(tmp_path / "joint" / "tensorboard"))
    events.Reload()
    assert {tag: [e.step for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]} == {
        f"train/{name}": [10, 20] for name in METRICS
    }
    assert events.Scalars("train/loss")[0].value == pytest.approx(1.23456)


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    log = RunLog(tmp_path, active=False, tracker="tensorboard")
    log.open_stage("joint", {})
    log.step("joint", 10, 20, METRICS)
    log.message("hello")
    assert list(tmp_path.iterdir()) == []
