"""What the README quotes, bound to what was measured: ``figures.yaml`` beside this file.

A quote is a piece of the README with every figure replaced by where it comes from::

    "| corpus | {scores.corpus.4.R@1} | {scores.corpus.5.R@1} |"

A place is a path into the benchmark's JSON, or several joined by `` * ``, `` / ``, `` + ``, `` - `` (with the spaces;
from left to right) and numbers, as in ``{median_s * 1000}``; ``*`` as a part of a path is the mean over all that stands
there. With ``under: [seeds.31, seeds.32]`` every place stands for two figures, ``.925 / .995``, one below each path.
Line breaks of the README do not matter. How a figure is rounded is read off the README itself.
"""

from __future__ import annotations

import operator as op
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from clara_dist.config.base import Config, load_config
from clara_dist.errors import ConfigError, DataError

FIGURES_FILE = Path(__file__).with_name("figures.yaml")

_NUMBER = r"[+-]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:e-?\d+)?"
_PLACE = re.compile(r"\{([^{}]+)\}")
_APPLY = {"*": op.mul, "/": op.truediv, "+": op.add, "-": op.sub}
_OPERATOR = re.compile(r" ([*/+-]) ")
_UNITS = r"(?:%|ms|s|seconds?|minutes?|hours?|times|words?|[KMG]i?B|[KMG]?B/s|\w+/s|of \d[\d,]*)"
# What a reader takes for a result: a fraction, a power of ten, a number with a unit, a cell of a table but the
# first of its row.
_LOOKS_MEASURED = re.compile(
    rf"(?<![\w.])(?:{_NUMBER}(?= {_UNITS}(?![\w/]))|[\d,]*\.\d+(?:e-?\d+)?|\d+e-\d+|(?<=\| )(?<!^\| )[\d,]+(?= \|))",
    re.MULTILINE,
)
_CODE = re.compile(r"^```.*?^```|`[^`\n]+`|<http[^>]*>", re.DOTALL | re.MULTILINE)


class Figures(Config):
    """Quotes of one benchmark with the same spread.

    Attributes:
        spread: How far a new measurement may be from what the README says: ``"30 %"`` of it, or an absolute number.
        under: Paths that every place is below, see the module.
        quotes: See the module.
    """

    spread: str | float
    quotes: tuple[str, ...]
    under: tuple[str, ...] = ("",)


class Benchmark(Config):
    """How figures are measured again.

    Attributes:
        command: What to type; its files are relative to the directory that all benchmarks share.
        result: The JSON that the command writes.
        minutes: What it took, about, on the machine of the README.
        after: A benchmark whose files the command reads.
        modules: Python packages that it needs beyond the project's own.
        files: What it reads that is not part of the project; to be put into that directory.
        figures: What it measures.
    """

    command: str
    result: str
    minutes: float
    after: str | None = None
    modules: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    figures: tuple[Figures, ...] = ()


class Exempt(Config):
    """Numbers of the README which no benchmark measures.

    Attributes:
        why: What they are instead; of a measurement: how to repeat it.
        quotes: Pieces of the README, literally but for line breaks.
    """

    why: str
    quotes: tuple[str, ...]


class FigureTable(Config):
    """All figures of the README.

    Attributes:
        machine: Where times and speeds were taken.
        benchmarks: By name, in the order in which they are run.
        not_repeated: Measurements that ``bench all`` does not repeat.
        not_measured: Settings, limits, sizes, and the like.
    """

    machine: str
    benchmarks: Mapping[str, Benchmark]
    not_repeated: tuple[Exempt, ...] = ()
    not_measured: tuple[Exempt, ...] = ()


@dataclass(frozen=True)
class Quoted:
    """A figure as it stands in the README.

    Attributes:
        benchmark: That measures it.
        place: Where the benchmark's JSON has it.
        text: As the README has it, such as ``.925``.
        line: Of the README, from 1.
        span: Of characters of the README.
        spread: As in `Figures`.
    """

    benchmark: str
    place: str
    text: str
    line: int
    span: tuple[int, int]
    spread: str | float

    @property
    def value(self) -> float:
        return float(self.text.replace(",", ""))

    @property
    def half_digit(self) -> float:
        """Half a unit of the last digit: what rounding took."""
        mantissa, _, exponent = self.text.partition("e")
        decimals = len(mantissa.partition(".")[2])
        return 0.5 * 10.0 ** (int(exponent or 0) - decimals)

    def is_rounding_of(self, measured: float) -> bool:
        """Whether the README says just this, to its digits."""
        return abs(measured - self.value) <= self.half_digit * (1 + 1e-6)

    def agrees_with(self, measured: float) -> bool:
        """Whether a new measurement is within the spread, which the rounding widens."""
        share = re.fullmatch(r"([\d.]+) %", str(self.spread))
        allowed = abs(self.value) * float(share[1]) / 100 if share else float(self.spread)
        return abs(measured - self.value) <= allowed + self.half_digit * (1 + 1e-6)


def read_table(path: Path = FIGURES_FILE) -> FigureTable:
    """Read ``figures.yaml``.

    Raises:
        ConfigError: It is not as `FigureTable` says, or a benchmark runs after one that does not come before it.
    """
    table = load_config(FigureTable, path)
    known: set[str] = set()
    for name, benchmark in table.benchmarks.items():
        if benchmark.after is not None and benchmark.after not in known:
            raise ConfigError(f"{name} runs after {benchmark.after}, which {path} does not have before it")
        known.add(name)
    return table


def quoted_figures(table: FigureTable, readme: str) -> Iterator[Quoted]:
    """Every bound figure of the README, benchmark by benchmark.

    Raises:
        DataError: The README does not have a quote, or has it twice.
    """
    for name, benchmark in table.benchmarks.items():
        for figures in benchmark.figures:
            for quote in figures.quotes:
                found = find_quote(quote, readme, n_figures=len(figures.under))
                places = [_below(under, place) for place in _PLACE.findall(quote) for under in figures.under]
                for number, place in enumerate(places, start=1):
                    line = readme.count("\n", 0, found.start(number)) + 1
                    yield Quoted(name, place, found[number], line, found.span(number), figures.spread)


def find_quote(quote: str, readme: str, n_figures: int = 1) -> re.Match[str]:
    """Find a quote in the README; its groups are the figures, ``n_figures`` for each place.

    Raises:
        DataError: It is not there, or there twice.
    """
    literals = _PLACE.split(quote)[::2]
    figures = r"\s/\s".join([f"({_NUMBER})"] * n_figures)
    pattern = figures.join(re.sub(r"(\\\s|\s)+", r"\\s+", re.escape(literal)) for literal in literals)
    # A figure at an end of a quote is a whole one.
    found = list(re.finditer(rf"(?<![\w.]){pattern}(?![\d])" if n_figures else pattern, readme))
    if len(found) != 1:
        raise DataError(
            "the README has a quote of clara_dist/bench/figures.yaml " + ("twice" if found else "no more"),
            got=quote,
            hint="change the quote along with the README",
        )
    return found[0]


def look_up(result: Any, place: str) -> float:
    """What a benchmark's JSON has at a place (see the module).

    Raises:
        DataError: Nothing is there, or no number.
    """
    first, *rest = _OPERATOR.split(place)
    value = _operand(result, first)
    for operator, other in zip(rest[::2], rest[1::2], strict=True):
        operand = _operand(result, other)
        value = _APPLY[operator](value, operand)
    return value


def unbound_figures(table: FigureTable, readme: str) -> list[tuple[int, str]]:
    """Line and text of everything in the README that looks measured and is in no quote.

    Raises:
        DataError: The README does not have a quote, or has it twice.
    """
    exempt = [quote for entry in (*table.not_repeated, *table.not_measured) for quote in entry.quotes]
    spans = [quoted.span for quoted in quoted_figures(table, readme)]
    spans += [find_quote(quote, readme, n_figures=0).span() for quote in exempt]
    spans += [found.span() for found in _CODE.finditer(readme)]
    return [
        (readme.count("\n", 0, found.start()) + 1, found[0])
        for found in _LOOKS_MEASURED.finditer(readme)
        if not any(start <= found.start() and found.end() <= end for start, end in spans)
    ]


def _below(under: str, place: str) -> str:
    if not under:
        return place
    parts = _OPERATOR.split(place)
    return "".join(
        f" {part} " if number % 2 else part if _is_number(part) else f"{under}.{part}"
        for number, part in enumerate(parts)
    )


def _operand(result: Any, place: str) -> float:
    if _is_number(place):
        return float(place)
    values = list(_values(result, place.split(".")))
    if not values or not all(isinstance(value, int | float) for value in values):
        raise DataError(f"a benchmark's result has no number at {place}", got=str(values)[:80])
    return fmean(values)


def _values(node: Any, path: list[str]) -> Iterator[Any]:
    if not path:
        yield node
        return
    head, *rest = path
    children = dict(enumerate(node)) if isinstance(node, list) else node if isinstance(node, dict) else {}
    for key, child in children.items():
        if head in ("*", str(key)):
            yield from _values(child, rest)


def _is_number(text: str) -> bool:
    return re.fullmatch(_NUMBER, text) is not None
