"""`bench all` on benchmarks that take no time: real commands in processes of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clara_dist.bench.figures import Benchmark, Exempt, Figures, FigureTable, read_table
from clara_dist.bench.remeasure import Remeasured, plan_text, remeasure
from clara_dist.cli import app
from clara_dist.errors import ConfigError, DataError

README = """\
# X
It reads 80.0 lines in 2 s,
of which .50 / .25 are right.
Others: 7 %. By hand: 3 minutes.
"""
# `data convert` is the cheapest command that writes what it is told to.
CONVERT = "clara-dist data convert {0} {1}"


def write_source(path: Path) -> str:
    rows = [{"question": "q", "docs": ["d"], "answer": "a", "pos_index": [0]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    path = tmp_path / "README.md"
    path.write_text(README, encoding="utf-8")
    return path


def benchmark(command: str, *quotes: str, spread: str | float = "10 %", **fields: object) -> Benchmark:
    figures = Figures(spread=spread, quotes=quotes)
    return Benchmark.model_validate(
        {"command": command, "result": "a.json", "minutes": 2, "figures": (figures,)} | fields
    )


def table(**benchmarks: Benchmark) -> FigureTable:
    return FigureTable(
        machine="a machine", benchmarks=benchmarks, not_repeated=(Exempt(why="a clock", quotes=("3 minutes",)),)
    )


def finish(out: Path, name: str, command: str, result: object) -> None:
    """What a run leaves that has done a benchmark."""
    out.mkdir(exist_ok=True)
    done = out / "done.json"
    known = json.loads(done.read_text(encoding="utf-8")) if done.exists() else {}
    done.write_text(json.dumps(known | {name: {"command": command, "wall_s": 1.0}}), encoding="utf-8")
    (out / f"{name}.json").write_text(json.dumps(result), encoding="utf-8")


def test_data_that_is_not_the_project_s_must_be_put_there(readme: Path, tmp_path: Path) -> None:
    bound = table(read=benchmark("x 1", "reads {n} lines", files=("passages.jsonl",)))
    outcome = remeasure(bound, readme, tmp_path / "out")
    assert {each.verdict for each in outcome.verdicts} == {"not measured"}
    assert f"needs passages.jsonl in {tmp_path / 'out' / 'files'}" in outcome.text()
    (tmp_path / "out" / "files" / "passages.jsonl").touch()
    outcome = remeasure(bound, readme, tmp_path / "out")  # it runs now, and there is no such command
    assert {each.verdict for each in outcome.verdicts} == {"failed"}


def verdicts(outcome: Remeasured) -> dict[str, tuple[str, str, int]]:
    return {v.quoted: (v.benchmark, v.verdict, v.line) for v in outcome.verdicts}


def test_what_agrees_what_does_not_and_what_is_missing(readme: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    finish(out, "read", "x 1", {"n": 86.0, "s": 2.71})
    bound = table(
        read=benchmark("x 1", "reads {n} lines", "in {s} s"),
        right=benchmark("x 2", "which {a} / .25", modules=("no_such_package",)),
        other=benchmark("x 3", "Others: {b} %", files=("passages.jsonl",)),
    )
    assert "[needs passages.jsonl in OUT/files: not part of the project]" in plan_text(bound)
    outcome = remeasure(bound, readme, out, ["read", "right"])
    assert verdicts(outcome) == {
        "80.0": ("read", "agrees", 2),
        "2": ("read", "disagrees", 2),
        ".50": ("right", "not measured", 3),
        "7": ("other", "not measured", 4),
    }
    assert not outcome.ok
    text = outcome.text()
    assert "README.md:2 disagrees: it says 2, measured 2.71, spread 10 % (read: s)" in text
    assert "right: 1 figures, needs no_such_package: pip install" in text
    assert "other: 1 figures, not in --only; about 2 min" in text
    assert "'3 minutes', by hand: a clock" in text
    assert text.endswith("1 agrees, 1 disagrees, 0 failed, 2 not measured, 1 by hand")
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert [v["measured"] for v in report["verdicts"]] == [86.0, 2.71, None, None]
    assert report["not_repeated"] == [["3 minutes", "a clock"]]


def test_commands_run_once_in_a_directory_of_their_own(
    readme: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = write_source(tmp_path / "source.jsonl")
    bound = table(
        first=benchmark(CONVERT.format(source, "made/a.json"), "reads {question} lines", result="made/a.json"),
        second=benchmark(CONVERT.format("made/a.json", "a.json"), "in {question} s", after="first"),
    )
    out = tmp_path / "out"
    stale = out / "files" / "made" / "stale"
    stale.mkdir(parents=True)
    outcome = remeasure(bound, readme, out, ["second"])
    assert "[1/2] first: about 2 min: clara-dist data convert" in capfd.readouterr().out
    assert not stale.exists()
    assert json.loads((out / "second.json").read_text(encoding="utf-8"))["question"] == "q"
    assert {v.verdict for v in outcome.verdicts} == {"failed"}  # a text is no figure
    assert not outcome.ok
    # What is done is not done again, unless its command is another one.
    (out / "files" / "made" / "a.json").unlink()
    remeasure(bound, readme, out, ["second"])
    assert capfd.readouterr().out.count("done before") == 2
    changed = benchmark(CONVERT.format("made/a.json", "a.json") + " --format auto", "in {question} s", after="first")
    again = remeasure(table(first=bound.benchmarks["first"], second=changed), readme, out, ["second"])
    assert [v.why for v in again.verdicts][1] == f"exit code 1, see {out / 'second.log'}"


def test_what_follows_a_failure_is_not_run(readme: Path, tmp_path: Path) -> None:
    bound = table(
        first=benchmark("clara-dist data convert nowhere.json a.json", "reads {n} lines"),
        second=benchmark("clara-dist no-such-command", "in {s} s", after="first"),
    )
    outcome = remeasure(bound, readme, tmp_path / "out")
    assert [v.verdict for v in outcome.verdicts] == ["failed", "failed"]
    assert outcome.verdicts[1].why == "it reads what first writes"
    assert not (tmp_path / "out" / "second.log").exists()


def test_nothing_runs_for_a_readme_that_lacks_a_quote(readme: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no more"):
        remeasure(table(x=benchmark("clara-dist x", "writes {n} lines")), readme, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="no such benchmark"):
        remeasure(table(x=benchmark("clara-dist x", "reads {n} lines")), readme, tmp_path / "out", ["y"])
    with pytest.raises(ConfigError, match="--readme"):
        remeasure(table(), tmp_path / "missing.md", tmp_path / "out")


def test_the_list_says_what_each_takes() -> None:
    known = read_table()
    text = plan_text(known)
    for name, spec in known.benchmarks.items():
        assert any(line.split()[:2] == [name, f"{spec.minutes:g}"] for line in text.splitlines())
    total = sum(spec.minutes for spec in known.benchmarks.values())
    assert f"{total:g}  on {known.machine}" in text


def test_the_command_fails_where_a_figure_disagrees(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    (name, spec), *_ = ((n, s) for n, s in read_table().benchmarks.items() if n == "index")
    recorded = json.loads((root / "tests" / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))
    demo = read_table().benchmarks["demo"]
    finish(tmp_path, "demo", demo.command, json.loads((root / "tests/benchmarks/demo.json").read_text("utf-8")))
    finish(tmp_path, name, spec.command, recorded)
    arguments = ["bench", "all", "--only", name, "--out", str(tmp_path), "--readme", str(root / "README.md")]
    agreed = CliRunner().invoke(app, arguments)
    assert agreed.exit_code == 0, agreed.output
    assert " 0 disagrees, 0 failed" in agreed.output
    recorded["measured"]["recall"] = 0.99
    finish(tmp_path, name, spec.command, recorded)
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 1
    assert "disagrees: it says 1.000, measured 0.99, spread 0.005 (index: measured.recall)" in refused.output
