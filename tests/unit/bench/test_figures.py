"""What the README quotes is what was recorded, and nothing is quoted that nobody measured."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from clara_dist.bench.figures import (
    FIGURES_FILE,
    Benchmark,
    Exempt,
    Figures,
    FigureTable,
    Quoted,
    find_quote,
    look_up,
    quoted_figures,
    read_table,
    unbound_figures,
)
from clara_dist.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[3]
RECORDED = ROOT / "tests" / "benchmarks"
README = (ROOT / "README.md").read_text(encoding="utf-8")
TABLE = read_table()


def recorded(name: str) -> Any:
    return json.loads((RECORDED / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", TABLE.benchmarks)
def test_the_readme_says_what_was_recorded(name: str) -> None:
    table = TABLE.model_copy(update={"benchmarks": {name: TABLE.benchmarks[name]}})
    result = recorded(name)
    figures = list(quoted_figures(table, README))
    assert figures
    for quoted in figures:
        measured = look_up(result, quoted.place)
        assert quoted.is_rounding_of(measured), f"README.md:{quoted.line} says {quoted.text}, {name}.json {measured}"


def test_no_figure_is_in_the_readme_alone() -> None:
    # Who adds a figure to the README binds it in figures.yaml, or says there why it is none.
    assert unbound_figures(TABLE, README) == []


def test_every_recorded_benchmark_is_quoted() -> None:
    assert {path.stem for path in RECORDED.glob("*.json")} == set(TABLE.benchmarks)


def arguments(command: str) -> set[tuple[str, ...]]:
    words = re.split(r" (?=--)", command)
    where = ("--output", "--work-dir", "--json")  # decides nothing
    return {tuple(word.split()) for word in words if not word.startswith(where)}


@pytest.mark.parametrize("name", TABLE.benchmarks)
def test_commands_are_those_that_were_recorded(name: str) -> None:
    benchmark = TABLE.benchmarks[name]
    assert shlex.split(benchmark.command)[0] == "clara-dist"
    machine = recorded(name).get("machine", {})
    if "command" in machine:
        assert arguments(machine["command"]) == arguments(benchmark.command)


def test_what_the_exempt_refer_to_exists() -> None:
    for entry in TABLE.not_repeated:
        for path in re.findall(r"(?:tests|jobs)/[\w/.]*\w", entry.why):
            assert (ROOT / path).exists(), path


TEXT = """\
# A
It is 1.52 times as fast, 98.2
documents/s. Seeds: .925 / .995.

| queries | ms |
|---|---|
| 8 | 1,027 |
"""
RESULT = {"a": {"b c/d": 3.04, "e": 2}, "s": {"1": {"x": [0.9251]}, "2": {"x": [0.995]}}, "n": [982, 1.0269]}


def table(*figures: Figures, exempt: tuple[str, ...] = ()) -> FigureTable:
    benchmark = Benchmark(command="clara-dist x", result="x.json", minutes=1, figures=figures)
    entries = (Exempt(why="a choice", quotes=exempt),) if exempt else ()
    return FigureTable(machine="this", benchmarks={"x": benchmark}, not_measured=entries)


def test_places_and_lines_of_quotes() -> None:
    bound = table(
        Figures(spread="10 %", quotes=("is {a.b c/d / a.e} times", "fast, {n.0 / 10} documents/s")),
        Figures(spread=0.01, quotes=("Seeds: {x.0}.",), under=("s.1", "s.2")),
        Figures(spread=5, quotes=("| 8 | {n.1 * 1000} |",)),
    )
    found = list(quoted_figures(bound, TEXT))
    assert [(quoted.text, quoted.line, look_up(RESULT, quoted.place)) for quoted in found] == [
        ("1.52", 2, 1.52),
        ("98.2", 2, 98.2),
        (".925", 3, 0.9251),
        (".995", 3, 0.995),
        ("1,027", 7, pytest.approx(1026.9)),
    ]
    assert all(quoted.is_rounding_of(look_up(RESULT, quoted.place)) for quoted in found)
    assert unbound_figures(bound, TEXT) == []


def test_unbound_figures_are_found() -> None:
    bound = table(Figures(spread=5, quotes=("Seeds: {a} / .995.",)), exempt=("98.2 documents/s",))
    # What stands literally in a bound quote is not bound by it.
    assert unbound_figures(bound, TEXT) == [(2, "1.52"), (3, ".995"), (7, "1,027")]
    assert unbound_figures(table(), "`top_k 5 s` of 7.\n```\n1.5\n```\nIt takes 3 minutes, 40 % and 3e-6.") == [
        (5, "3"),
        (5, "40"),
        (5, "3e-6"),
    ]


@pytest.mark.parametrize(("quote", "said"), [("is {a} times as slow", "no more"), ("| {a} |", "twice")])
def test_a_quote_is_in_the_readme_once(quote: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        find_quote(quote, TEXT + "\n| 5 |\n")


def test_a_figure_is_not_a_part_of_another() -> None:
    with pytest.raises(DataError, match="no more"):
        find_quote("{a}52 times", TEXT)
    with pytest.raises(DataError, match="no more"):
        find_quote("is {a}.5", TEXT)


@pytest.mark.parametrize("place", ["a.b", "n.7", "s", "a"])
def test_a_place_that_holds_no_number(place: str) -> None:
    with pytest.raises(DataError, match="no number"):
        look_up(RESULT, place)


def test_operators_go_from_left_to_right_and_stars_are_means() -> None:
    assert look_up(RESULT, "1 - a.e * 100") == -100
    assert look_up({"p": {"a": 1.0, "b": 3.0}}, "p.b + p.a / p.* / 2 * 100") == 100
    assert look_up({"s": {"4": {"r": 0.5}, "5": {"r": 1.0}}}, "s.*.r") == 0.75


def quoted(text: str, spread: str | float) -> Quoted:
    return Quoted("x", "a", text, 1, (0, 1), spread)


@pytest.mark.parametrize(
    ("text", "measured", "rounds", "within_a_tenth"),
    [
        (".925", 0.9255, True, True),
        (".925", 0.926, False, True),
        ("60", 60.4, True, True),
        ("60", 66.4, False, True),
        ("60", 66.6, False, False),
        ("3e-6", 3.4e-6, True, True),
        ("3e-6", 3.9e-6, False, False),
        ("+.33", 0.331, True, True),
        ("-.21", 0.21, False, False),
        ("1,027", 1027.4, True, True),
    ],
)
def test_rounding_and_spread(text: str, measured: float, rounds: bool, within_a_tenth: bool) -> None:
    assert quoted(text, "10 %").is_rounding_of(measured) is rounds
    assert quoted(text, "10 %").agrees_with(measured) is within_a_tenth


def test_an_absolute_spread() -> None:
    assert quoted(".925", 0.05).agrees_with(0.875)
    assert not quoted(".925", 0.05).agrees_with(0.87)


def test_a_benchmark_comes_after_what_it_reads(tmp_path: Path) -> None:
    text = FIGURES_FILE.read_text(encoding="utf-8").replace("after: demo", "after: nothing", 1)
    (tmp_path / "figures.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="after nothing"):
        read_table(tmp_path / "figures.yaml")
