"""From what the user names (files, patterns, a BEIR directory) to units of work."""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from clara_dist.data.corpus.lines import LineRange, detect_line_format, plan_lines
from clara_dist.data.corpus.parquet import plan_parquet
from clara_dist.data.corpus.units import CorpusFormat, CorpusUnit, RowFormat
from clara_dist.data.json_lines import DEFAULT_MAX_LINE_BYTES, require_file
from clara_dist.errors import DataError

_LINE_SUFFIXES = (".jsonl", ".ndjson", ".json")
_PARQUET_SUFFIXES = (".parquet", ".pq")


def plan_units(
    corpus: str | Path | Sequence[str | Path],
    *,
    format: CorpusFormat = "auto",
    rows_per_unit: int = 2048,
    max_line_bytes: int = DEFAULT_MAX_LINE_BYTES,
) -> list[CorpusUnit]:
    """Plan a corpus: the same corpus gives the same units, wherever it lies.

    Reads every file once, sequentially and with flat memory, to find the lines and to hash the content.

    Args:
        corpus: Files, glob patterns (sorted), or directories in BEIR's layout; documents keep this order. A file named
            twice is read once. Paths must mean the same on every machine that reads.
        format: ``auto`` goes by the file's name, and tells documents from CLaRa training rows by the first good row.
        rows_per_unit: Rows of one unit of work.
        max_line_bytes: Longer lines are rejected unread. A long text within it is accepted; the tokenizer cuts it.

    Raises:
        DataError: Nothing matches, or a file is missing, empty, unreadable or of no known format.
    """
    if rows_per_unit < 1 or max_line_bytes < 1:
        raise DataError("rows_per_unit and max_line_bytes must be positive", got=(rows_per_unit, max_line_bytes))
    names = [corpus] if isinstance(corpus, (str, Path)) else list(corpus)
    files: dict[str, str] = {}
    for path in itertools.chain.from_iterable(_files_of(str(name)) for name in names):
        files.setdefault(os.path.realpath(path), path)
    if not files:
        raise DataError("no corpus was named")
    units: list[CorpusUnit] = []
    for path in files.values():
        row_format = _row_format(path, format, max_line_bytes)
        for part in _parts(path, row_format, rows_per_unit):
            units.append(
                CorpusUnit(
                    index=len(units),
                    path=path,
                    format=row_format,
                    start=part.start,
                    stop=part.stop,
                    first_line=part.first_line,
                    n_rows=part.n_lines,
                    digest=part.digest,
                    max_line_bytes=max_line_bytes,
                )
            )
    return units


def _files_of(name: str) -> list[str]:
    if "://" in name:
        raise DataError(
            "a corpus is read from a file system, not from a URL", got=name, hint="copy it, or mount the bucket"
        )
    if os.path.exists(name) or not glob.has_magic(name):
        return [_corpus_file(name)]
    matches = sorted(glob.glob(name, recursive=True))
    if not matches:
        raise DataError(f"no file matches {name}")
    return [_corpus_file(match) for match in matches]


def _corpus_file(path: str) -> str:
    """The file itself, or the one that holds a BEIR directory's documents."""
    if not os.path.isdir(path):
        require_file(path)
        return path
    for name in ("corpus.jsonl", "corpus.jsonl.gz"):
        if os.path.isfile(os.path.join(path, name)):
            return os.path.join(path, name)
    raise DataError(
        f"{path} is a directory without BEIR's corpus.jsonl",
        hint=f"name the files, for example '{os.path.join(path, '*.jsonl')}'",
    )


def _row_format(path: str, wanted: CorpusFormat, max_line_bytes: int) -> RowFormat:
    name = path.lower().removesuffix(".gz")
    if wanted == "parquet" or (wanted == "auto" and name.endswith(_PARQUET_SUFFIXES)):
        return "parquet"
    if wanted == "auto" and not name.endswith(_LINE_SUFFIXES):
        raise DataError(
            f"cannot tell the format of {path} by its name",
            expected=f"{', '.join(_LINE_SUFFIXES)} (or with .gz), {' or '.join(_PARQUET_SUFFIXES)}",
            hint="rename it, or name the format: jsonl, clara or parquet",
        )
    detected = detect_line_format(path, max_line_bytes)  # also where the format is given: an empty file is found here
    if wanted == "auto":
        return detected
    return "clara" if wanted == "clara" else "jsonl"


def _parts(path: str, row_format: RowFormat, rows_per_unit: int) -> Iterator[LineRange]:
    if row_format != "parquet":
        yield from plan_lines(path, rows_per_unit)
        return
    n_rows, digest = plan_parquet(path)
    for start in range(0, n_rows, rows_per_unit):
        stop = min(start + rows_per_unit, n_rows)
        yield LineRange(start, stop, start + 1, stop - start, digest)
