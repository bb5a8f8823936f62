"""``clara-dist bench all``: every figure of the README measured again, and held against what the README says."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import clara_dist
from clara_dist.bench.figures import Benchmark, FigureTable, Quoted, look_up, quoted_figures
from clara_dist.bench.machine import describe_machine
from clara_dist.errors import ConfigError, DataError

SOURCE = Path(clara_dist.__file__).parents[1]
_DONE = "done.json"
_REPORT = "report.json"


@dataclass(frozen=True)
class Verdict:
    """A figure of the README, and what was found.

    Attributes:
        benchmark: That measures it.
        place: Where the benchmark's JSON has it.
        line: Of the README.
        quoted: As the README has it.
        measured: None where it was not.
        spread: That is allowed.
        verdict: ``agrees``, ``disagrees``, ``failed`` (the benchmark or the look-up did), or ``not measured``.
        why: It failed or was not measured.
    """

    benchmark: str
    place: str
    line: int
    quoted: str
    measured: float | None
    spread: str
    verdict: str
    why: str | None = None


@dataclass(frozen=True)
class Remeasured:
    """The outcome.

    Attributes:
        verdicts: Of every bound figure, in the order of ``figures.yaml``.
        not_repeated: Measurements which no benchmark repeats: what they are and how to.
    """

    verdicts: tuple[Verdict, ...]
    not_repeated: tuple[tuple[str, str], ...]

    @property
    def ok(self) -> bool:
        """Whether nothing disagrees or failed; what was not measured is no failure."""
        return all(verdict.verdict in ("agrees", "not measured") for verdict in self.verdicts)

    def text(self) -> str:
        """A table of what was measured, and what was not by name."""
        known = [verdict for verdict in self.verdicts if verdict.verdict != "not measured"]
        head = f"{'README.md':<11}{'benchmark':<18}{'quoted':>9}{'measured':>12}{'spread':>9}  verdict"
        lines = [head, "-" * len(head), *map(_row, known)] if known else []
        for what in ("disagrees", "failed"):
            found = [verdict for verdict in known if verdict.verdict == what]
            lines += ["", *(f"README.md:{v.line} {what}: {_reason(v)}" for v in found)] if found else []
        lines += ["", "not measured:"]
        missing = [verdict for verdict in self.verdicts if verdict.verdict == "not measured"]
        for name, why in dict.fromkeys((verdict.benchmark, verdict.why) for verdict in missing):
            lines.append(f"  {name}: {sum(v.benchmark == name for v in missing)} figures, {why}")
        lines += [f"  {quote!r}, by hand: {how}" for quote, how in self.not_repeated]
        counts = {what: sum(v.verdict == what for v in self.verdicts) for what in ("agrees", "disagrees", "failed")}
        summary = ", ".join(f"{n} {what}" for what, n in counts.items())
        return "\n".join([*lines, "", f"{summary}, {len(missing)} not measured, {len(self.not_repeated)} by hand"])


def plan_text(table: FigureTable) -> str:
    """What there is to run, and how long it takes."""
    width = max(map(len, table.benchmarks))
    lines = [f"{'benchmark':<{width}}{'minutes':>9}{'figures':>9}  command"]
    for name, benchmark in table.benchmarks.items():
        n = sum(len(figures.under) * quote.count("{") for figures in benchmark.figures for quote in figures.quotes)
        lacking = _lacking(benchmark)
        note = f"  [{lacking}]" if lacking else f"  [after {benchmark.after}]" if benchmark.after else ""
        lines.append(f"{name:<{width}}{benchmark.minutes:>9g}{n:>9}  {benchmark.command}{note}")
    total = sum(benchmark.minutes for benchmark in table.benchmarks.values())
    lines.append(f"{'together':<{width}}{total:>9g}  on {table.machine}")
    by_hand = sum(len(entry.quotes) for entry in table.not_repeated)
    return "\n".join([*lines, f"{by_hand} more are measured by hand, see clara_dist/bench/figures.yaml"])


def remeasure(table: FigureTable, readme: Path, out: Path, only: Sequence[str] = ()) -> Remeasured:
    """Run what is not done in ``out``, compare, and write ``out``/report.json.

    Args:
        table: What to run and to compare.
        readme: What is held against the measurements.
        out: Takes results, logs, and the files that benchmarks share.
        only: Names of benchmarks; those that they read from are run, too. None: all.

    Raises:
        ConfigError: There is no such benchmark, or no such README.
        DataError: The README does not have a quote, or has it twice.
    """
    if not readme.is_file():
        raise ConfigError(f"there is no {readme}", hint="run it in a clone of the project, or name its --readme")
    text = readme.read_text(encoding="utf-8")
    figures = list(quoted_figures(table, text))  # Before hours are spent.
    chosen = _chosen(table, only)
    (out / "files").mkdir(parents=True, exist_ok=True)
    if (load := os.getloadavg()[0]) > 1:
        print(f"others are at work here (load {load:.1f}): times may disagree for that alone", flush=True)
    failures: dict[str, str] = {}
    for number, name in enumerate(chosen, start=1):
        benchmark = table.benchmarks[name]
        failure = _lacking(benchmark, out / "files")
        if failure is None and benchmark.after in failures:
            failure = f"it reads what {benchmark.after} writes"
        if failure is None:
            print(f"[{number}/{len(chosen)}] {name}: about {benchmark.minutes:g} min: {benchmark.command}", flush=True)
            failure = _run(name, benchmark, out)
        if failure is not None:
            failures[name] = failure
            print(f"[{number}/{len(chosen)}] {name}: {failure}", flush=True)
    verdicts = tuple(_verdict(quoted, table, out, chosen, failures) for quoted in figures)
    by_hand = tuple((quote, entry.why) for entry in table.not_repeated for quote in entry.quotes)
    outcome = Remeasured(verdicts, by_hand)
    report = {"machine": describe_machine("cpu"), "quoted_from": table.machine, **asdict(outcome)}
    (out / _REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return outcome


def _chosen(table: FigureTable, only: Sequence[str]) -> list[str]:
    if unknown := set(only) - set(table.benchmarks):
        raise ConfigError(
            "there is no such benchmark", got=", ".join(sorted(unknown)), expected=", ".join(table.benchmarks)
        )
    wanted = set(only or table.benchmarks)
    for name in reversed(list(table.benchmarks)):
        if name in wanted and (after := table.benchmarks[name].after) is not None:
            wanted.add(after)
    return [name for name in table.benchmarks if name in wanted]


def _lacking(benchmark: Benchmark, files: Path | None = None) -> str | None:
    """Why it cannot run here; without a directory to look into, whatever it needs of data is said."""
    modules = [module for module in benchmark.modules if importlib.util.find_spec(module) is None]
    if modules:
        return f"needs {', '.join(modules)}: pip install '.[bench,dense]'"
    absent = [name for name in benchmark.files if files is None or not (files / name).exists()]
    if absent:
        return f"needs {' and '.join(absent)} in {files or 'OUT/files'}: not part of the project"
    return None


def _run(name: str, benchmark: Benchmark, out: Path) -> str | None:
    """Run a benchmark unless it is done; returns why it failed."""
    done = _read_done(out)
    result = out / f"{name}.json"
    if done.get(name, {}).get("command") == benchmark.command and result.exists():
        print("    done before")
        return None
    command = [sys.executable, "-m", "clara_dist.cli", *shlex.split(benchmark.command)[1:]]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])}
    log, started = out / f"{name}.log", time.perf_counter()
    files = out / "files"
    _clear(files, Path(benchmark.result))
    with log.open("wb") as output:
        code = subprocess.run(command, cwd=files, env=environment, stdout=output, stderr=subprocess.STDOUT).returncode
    wall_s = time.perf_counter() - started
    if code != 0:
        return f"exit code {code}, see {log}"
    if not (files / benchmark.result).exists():
        return f"it wrote no {benchmark.result}, see {log}"
    shutil.copyfile(files / benchmark.result, result)
    done[name] = {"command": benchmark.command, "wall_s": wall_s, "load_average": os.getloadavg()}
    (out / _DONE).write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")
    print(f"    {wall_s:.0f} s: {result}", flush=True)
    return None


def _clear(files: Path, result: Path) -> None:
    """Remove what a run that was stopped left; a result in a directory of its own (the demo's) goes with it."""
    if len(result.parts) > 1:
        shutil.rmtree(files / result.parts[0], ignore_errors=True)
    (files / result).unlink(missing_ok=True)


def _read_done(out: Path) -> dict[str, Any]:
    if not (out / _DONE).exists():
        return {}
    return dict(json.loads((out / _DONE).read_text(encoding="utf-8")))


def _verdict(
    quoted: Quoted, table: FigureTable, out: Path, chosen: Iterable[str], failures: Mapping[str, str]
) -> Verdict:
    measured, why = None, None
    if quoted.benchmark not in chosen:
        verdict, why = "not measured", f"not in --only; about {table.benchmarks[quoted.benchmark].minutes:g} min"
    elif quoted.benchmark in failures:
        why = failures[quoted.benchmark]
        verdict = "not measured" if _lacking(table.benchmarks[quoted.benchmark], out / "files") else "failed"
    else:
        result = json.loads((out / f"{quoted.benchmark}.json").read_text(encoding="utf-8"))
        try:
            measured = look_up(result, quoted.place)
        except DataError as error:
            verdict, why = "failed", error.what
        else:
            verdict = "agrees" if quoted.agrees_with(measured) else "disagrees"
    spread = str(quoted.spread)
    return Verdict(quoted.benchmark, quoted.place, quoted.line, quoted.text, measured, spread, verdict, why)


def _row(found: Verdict) -> str:
    measured = "-" if found.measured is None else _short(found.measured)
    start = f"line {found.line:<6}{found.benchmark:<18}{found.quoted:>9}{measured:>12}{found.spread:>9}"
    return f"{start}  {found.verdict}"


def _reason(found: Verdict) -> str:
    if found.measured is None:
        return f"{found.quoted} ({found.benchmark}): {found.why}"
    return (
        f"it says {found.quoted}, measured {_short(found.measured)}, spread {found.spread} "
        f"({found.benchmark}: {found.place})"
    )


def _short(value: float) -> str:
    return f"{value:.4g}" if value == 0 or -4 < math.log10(abs(value)) < 4 else f"{value:.3g}"
