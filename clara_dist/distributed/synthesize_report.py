"""What came of a synthesis job: its files and its figures."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from clara_dist.config.synthesize import SynthesizeConfig
from clara_dist.distributed.synthesize_unit import Entry, SynthesisWork, UnitFile, read_unit_file
from clara_dist.store import files
from clara_dist.store.storage import at_once
from clara_dist.synthesis import Usage
from clara_dist.synthesis.estimate import Estimate

_FILES_AT_ONCE = 256


@dataclass(frozen=True)
class SynthesizeReport:
    """What a job did.

    Attributes:
        output: The rows.
        model: Who wrote them.
        n_documents: Documents that were wanted.
        n_done: Of these, with rows that were written.
        n_kept: Of these, by earlier runs.
        n_failed: Documents that have no rows because they failed; they are tried again when the command is run again.
        n_uncovered: Documents done of which key facts are still left out.
        n_rejected: Bad rows of the corpus.
        n_repeated: Documents that were left out because the very same one is in the corpus already.
        rows: Rows in the output by ``data_type``.
        usage: Of all requests that the units of this corpus took with these settings, in this run and in earlier ones.
        cost: What the tokens cost; None without prices.
        seconds: Of this run.
        stopped: Why documents are left that were not begun; None if none are.
        files: Where the rest is.
    """

    output: str
    model: str
    n_documents: int
    n_done: int
    n_kept: int
    n_failed: int
    n_uncovered: int
    n_rejected: int
    n_repeated: int
    rows: dict[str, int]
    usage: Usage
    cost: float | None
    seconds: float
    stopped: str | None
    files: dict[str, str]

    def to_json(self) -> str:
        """All figures as one JSON object."""
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        rows = ", ".join(f"{n} {kind}" for kind, n in sorted(self.rows.items())) or "none"
        spent = ", ".join(
            f"{getattr(self.usage, f.name):,} {f.name.replace('_', ' ')}"
            for f in fields(Usage)
            if getattr(self.usage, f.name) and f.name not in ("requests", "prompt_tokens", "completion_tokens")
        )
        table = {
            "documents": f"{self.n_done} of {self.n_documents}" + (f", {self.n_kept} earlier" if self.n_kept else ""),
            "rows": rows,
            "failed": f"{self.n_failed}; run the command again to try them again" if self.n_failed else "0",
            "facts left out": f"in {self.n_uncovered} documents" if self.n_uncovered else "none",
            "left out": f"{self.n_rejected} bad rows, {self.n_repeated} repeated documents",
            "requests": f"{self.usage.requests:,}" + (f" ({spent})" if spent else ""),
            "tokens": f"{self.usage.prompt_tokens:,} of prompts, {self.usage.completion_tokens:,} of answers",
        }
        if self.cost is not None:
            table["cost"] = f"{self.cost:,.2f}"
        lines = [f"{self.output}, written by {self.model} in {self.seconds:.1f} s"]
        lines += [f"  {name:<15} {value}" for name, value in table.items()]
        return "\n".join([*lines, *([f"  {self.stopped}"] if self.stopped else [])])


@dataclass(frozen=True)
class SynthesizePlan:
    """What a job would do; figures of documents that are not done yet.

    Attributes:
        n_documents: Documents that are wanted.
        n_left: Of these, without rows.
        n_rejected: Bad rows of the corpus.
        least: If nothing has to be written anew.
        most: If every document takes all rounds.
        costs: Of least and most; None without prices.
    """

    n_documents: int
    n_left: int
    n_rejected: int
    least: Estimate
    most: Estimate
    costs: tuple[float, float] | None

    def __str__(self) -> str:
        rows = [
            ("documents", f"{self.n_documents}, of which {self.n_left} are to be done"),
            ("bad rows", str(self.n_rejected)),
            ("requests", f"{self.least.requests:,} to {self.most.requests:,}"),
            ("prompt tokens", f"{self.least.prompt_tokens:,} to {self.most.prompt_tokens:,}"),
            ("answer tokens", f"{self.least.completion_tokens:,} to {self.most.completion_tokens:,}"),
        ]
        if self.costs is not None:
            rows.append(("cost", f"{self.costs[0]:,.2f} to {self.costs[1]:,.2f}"))
        lines = ["dry run: nothing was asked; from no round of writing anew to all of them, without retries"]
        return "\n".join([*lines, *(f"  {name:<15} {value}" for name, value in rows)])


@dataclass
class Gathered:
    """Sums over the files of all units."""

    n_done: int = 0
    n_failed: int = 0
    n_uncovered: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    usage: Usage = field(default_factory=Usage)


def gather(config: SynthesizeConfig, tasks: Sequence[SynthesisWork]) -> Gathered:
    """Write the rows of all units into the output, in the order of the corpus, and list what is missing.

    Raises:
        DataError: A unit's file is damaged.
    """
    found = Gathered()
    folder = files.join(config.work_dir, "units")

    def read(task: SynthesisWork) -> UnitFile:
        path = files.join(folder, task.file)
        return read_unit_file(path) if files.size_bytes(path) is not None else UnitFile()

    with tempfile.TemporaryFile() as rows, tempfile.TemporaryFile() as failures:
        for start in range(0, len(tasks), _FILES_AT_ONCE):
            some = tasks[start : start + _FILES_AT_ONCE]
            for task, unit in zip(some, at_once(read, some), strict=True):
                found.usage += unit.usage
                for position in sorted(unit.entries):
                    if position < task.n_wanted:
                        entry = unit.entries[position]
                        _count(found, entry)
                        rows.write(b"".join(map(_line, entry.rows)))
                        if entry.failure is not None or entry.missing:
                            reason = entry.failure or "key facts are left out"
                            failure = {"doc_id": entry.doc_id, "reason": reason, "missing": entry.missing}
                            failures.write(_line({**failure, "rows": len(entry.rows)}))
        files.write_from(config.failures_path, failures)
        files.write_from(config.output, rows)
    return found


def _count(found: Gathered, entry: Entry) -> None:
    if entry.failure is not None:
        found.n_failed += 1
        return
    found.n_done += 1
    found.n_uncovered += bool(entry.missing)
    found.rows.update(row["data_type"] for row in entry.rows)


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8", errors="backslashreplace") + b"\n"
