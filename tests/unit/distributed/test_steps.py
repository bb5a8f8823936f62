"""Finished steps are recorded and skipped; a record of something else is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clara_dist.distributed.steps import Step, run_steps
from clara_dist.errors import ConfigError


class Recorder:
    """Steps that write down when they run, and fail on demand."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.failing: set[str] = set()

    def steps(self, *names: str) -> list[Step]:
        return [Step(name, f"the step {name}", lambda name=name: self._work(name)) for name in names]

    def _work(self, name: str) -> None:
        self.ran.append(name)
        if name in self.failing:
            raise RuntimeError(name)


def test_a_failed_run_goes_on_with_the_step_that_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorder = Recorder()
    recorder.failing = {"b"}
    with pytest.raises(RuntimeError):
        run_steps(recorder.steps("a", "b", "c"), tmp_path / "run", settings="s", resume=False)
    assert recorder.ran == ["a", "b"]
    recorder.failing.clear()
    seconds = run_steps(recorder.steps("a", "b", "c"), tmp_path / "run", settings="s", resume=True)
    assert recorder.ran == ["a", "b", "b", "c"]
    assert list(seconds) == ["a", "b", "c"]
    assert "[1/3] the step a: finished earlier" in capsys.readouterr().out


def test_a_finished_run_does_nothing_again(tmp_path: Path) -> None:
    recorder = Recorder()
    first = run_steps(recorder.steps("a", "b"), tmp_path, settings="s", resume=False)
    assert run_steps(recorder.steps("a", "b"), tmp_path, settings="s", resume=True) == first
    assert recorder.ran == ["a", "b"]


def test_resuming_where_nothing_began_begins(tmp_path: Path) -> None:
    recorder = Recorder()
    run_steps(recorder.steps("a"), tmp_path, settings="s", resume=True)
    assert recorder.ran == ["a"]


@pytest.mark.parametrize(
    ("settings", "resume", "message"), [("s", False, "holds a run already"), ("t", True, "other settings")]
)
def test_a_record_is_not_overwritten(tmp_path: Path, settings: str, resume: bool, message: str) -> None:
    recorder = Recorder()
    run_steps(recorder.steps("a"), tmp_path, settings="s", resume=False)
    before = (tmp_path / "steps.json").read_bytes()
    with pytest.raises(ConfigError, match=message):
        run_steps(recorder.steps("a", "b"), tmp_path, settings=settings, resume=resume)
    assert recorder.ran == ["a"]
    assert (tmp_path / "steps.json").read_bytes() == before


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"settings": "x"}', json.dumps({"settings": "", "seconds": [1]})])
def test_a_damaged_record_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "steps.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match="is damaged"):
        run_steps(Recorder().steps("a"), tmp_path, settings="s", resume=True)
