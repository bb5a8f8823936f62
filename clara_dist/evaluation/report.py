"""What an evaluation found, as values, JSON and a table."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from clara_dist.evaluation.answers import AnswerScores
from clara_dist.evaluation.records import ANSWERS, AnswerRecord, RecordFiles, Scope, write_records
from clara_dist.evaluation.trec import write_runs


@dataclass(frozen=True)
class ScopeScores:
    """One method's figures over one set of documents.

    Attributes:
        recall: k -> mean share of a question's positives that are found, wholly or as a passage, among the first k
            rows; None for a method that does not retrieve.
        answers: Means over all questions; None where the questions have no answers.
        measures: Means of the retrieval measures by name, Recall@k (``R@k``) among them; empty for a method that does
            not retrieve.
    """

    recall: Mapping[int, float] | None
    answers: AnswerScores | None
    measures: Mapping[str, float] = field(default_factory=dict)


class _ExactMean:
    """The mean of floats, of which only a sum is kept: exact, so that the order of the terms does not show."""

    def __init__(self) -> None:
        self._sum, self._n = 0, 0

    def add(self, value: float) -> None:
        # Every bit of a figure of at least 2^-47; what a smaller one loses, it loses in any order.
        self._sum += int(math.ldexp(value, 100))
        self._n += 1

    def __float__(self) -> float:
        return self._sum / (1 << 100) / self._n


class _Tally:
    """The records of one method in one scope, added up."""

    def __init__(self) -> None:
        self._measures: defaultdict[str, _ExactMean] = defaultdict(_ExactMean)
        self._answers: defaultdict[str, _ExactMean] = defaultdict(_ExactMean)

    def add(self, record: AnswerRecord) -> None:
        for name, value in record.measures.items():
            self._measures[name].add(value)
        if record.scores is not None:
            for name, value in vars(record.scores).items():
                self._answers[name].add(value)

    def scores(self, recall_at: Sequence[int]) -> ScopeScores:
        measures = {name: float(mean) for name, mean in self._measures.items()}
        recall = {k: measures[f"R@{k}"] for k in recall_at} if measures else None
        answers = AnswerScores(**{name: float(mean) for name, mean in self._answers.items()}) if self._answers else None
        return ScopeScores(recall, answers, measures)


@dataclass(frozen=True)
class MethodScores:
    """One row of the table; ``candidates`` is None where the questions name none."""

    method: str
    candidates: ScopeScores | None
    corpus: ScopeScores


@dataclass(frozen=True)
class EvaluationReport:
    """An evaluation.

    Attributes:
        n_questions: Questions asked.
        n_documents: Documents in the corpus.
        n_passages: Rows that they are in the store: more, where long ones were split.
        n_candidates: Candidates a question, (fewest, most); None where the questions name none.
        top_k: Documents (passages, where there are any) that the generator read.
        recall_at: The k of the Recall@k columns.
        max_tokens: Longest answer.
        methods: In the table's order.
        records: Every single answer, in memory or in a file; iterated over several times, and never held here.
    """

    n_questions: int
    n_documents: int
    n_passages: int
    n_candidates: tuple[int, int] | None
    top_k: int
    recall_at: tuple[int, ...]
    max_tokens: int
    methods: tuple[MethodScores, ...]
    records: tuple[AnswerRecord, ...] | RecordFiles

    @classmethod
    def of(
        cls, records: Sequence[AnswerRecord] | RecordFiles, recall_at: Sequence[int], **facts: Any
    ) -> EvaluationReport:
        """The report that records of all questions make; ``facts`` are the other attributes.

        It depends on nothing but the records, so one that was made in pieces is that of one piece.
        """
        tallies: dict[str, dict[Scope, _Tally]] = {}
        for record in records:
            tallies.setdefault(record.method, {}).setdefault(record.scope, _Tally()).add(record)
        scores = {
            method: {scope: tally.scores(recall_at) for scope, tally in scopes.items()}
            for method, scopes in tallies.items()
        }
        methods = tuple(
            MethodScores(method, scopes.get("candidates"), scopes["corpus"]) for method, scopes in scores.items()
        )
        kept = records if isinstance(records, RecordFiles) else tuple(records)
        return cls(recall_at=tuple(recall_at), methods=methods, records=kept, **facts)

    def __getitem__(self, method: str) -> MethodScores:
        return next(row for row in self.methods if row.method == method)

    def to_dict(self) -> dict[str, Any]:
        """All but the single answers, fit for JSON."""
        tree = asdict(replace(self, records=()))
        del tree["records"]
        return tree

    def write(self, directory: str | Path) -> None:
        """Write ``report.json``, ``table.txt``, ``answers.parquet`` (the records) and ``runs/`` (TREC)."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "report.json").write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        (directory / "table.txt").write_text(f"{self.table()}\n\n{self.measures_table()}\n", encoding="utf-8")
        write_records(self.records, directory / ANSWERS)
        write_runs(self.records, directory / "runs")

    def measures_table(self) -> str:
        """All other figures as plain text, a line for each method and scope."""
        shown = [name for name in self.methods[0].corpus.measures if not name.startswith("R@")]
        columns = [*shown, "EM", "F1", "cover"]
        width = max(len(row.method) for row in self.methods)
        lines = [f"{'':<{width}}  {'':<10}" + "".join(f"{name:>10}" for name in columns)]
        for row in self.methods:
            for scope, scores in (("candidates", row.candidates), ("corpus", row.corpus)):
                if scores is None:
                    continue
                answers = scores.answers
                figures = [scores.measures.get(name) for name in shown]
                figures += [None] * 3 if answers is None else [answers.exact_match, answers.f1, answers.cover_match]
                cells = "".join(f"{'-' if value is None else f'{value:.3f}':>10}" for value in figures)
                lines.append(f"{row.method:<{width}}  {scope:<10}{cells}")
        return "\n".join(lines)

    def figure(self, name: str) -> float | None:
        """A figure by its name, such as ``joint STE, corpus, R@5``; None if it is not there."""
        method, scope, measure = (part.strip() for part in name.split(","))
        row = next((row for row in self.methods if row.method == method), None)
        scores = None if row is None else getattr(row, scope)
        if scores is None:
            return None
        answers = {} if scores.answers is None else asdict(scores.answers)
        names = {"EM": "exact_match", "F1": "f1", "cover": "cover_match"}
        found: float | None = ({**scores.measures, **{k: answers.get(v) for k, v in names.items()}}).get(measure)
        return found

    def beside(self, published: Mapping[str, float]) -> list[str]:
        """Our figures beside published ones, a line each."""
        if not published:
            return []
        width = max(map(len, published))
        lines = [f"\n{'':<{width}}{'ours':>10}{'published':>12}"]
        for name, value in published.items():
            own = self.figure(name)
            lines.append(f"{name:<{width}}{'-' if own is None else f'{own:.4f}':>10}{value:>12.4f}")
        return lines

    def table(self) -> str:
        """The table as plain text: Recall@k and exact match, over the given candidates and over the whole corpus."""
        is_split = self.n_passages > self.n_documents
        passages = f" ({self.n_passages:,} passages)" if is_split else ""
        scopes: list[tuple[str, Scope]] = [(f"all {self.n_documents:,} documents{passages}", "corpus")]
        if self.n_candidates is not None:
            fewest, most = self.n_candidates
            given = f"{most}" if fewest == most else f"{fewest}-{most}"
            scopes.insert(0, (f"{given} given candidates", "candidates"))
        columns = [*(f"R@{k}" for k in self.recall_at), "EM"]
        group_width = max(2 + 7 * len(columns), *(2 + len(title) for title, _ in scopes))
        name_width = max(len(row.method) for row in self.methods)
        lines = [
            " " * name_width + "".join(title.rjust(group_width) for title, _ in scopes),
            " " * name_width + "".join("".join(c.rjust(7) for c in columns).rjust(group_width) for _ in scopes),
        ]
        lines.append("-" * len(lines[-1]))
        for row in self.methods:
            groups = ("".join(cell.rjust(7) for cell in self._cells(getattr(row, scope))) for _, scope in scopes)
            lines.append(row.method.ljust(name_width) + "".join(group.rjust(group_width) for group in groups))
        unit = "passage" if is_split else "document"
        read = f"the best {unit}" if self.top_k == 1 else f"the best {self.top_k} {unit}s"
        reading = "" if self.methods[0].corpus.answers is None else f"answers read {read}; "
        error = 0.5 / self.n_questions**0.5
        lines.append(f"{self.n_questions:,} questions; {reading}sampling error at most {error:.3f}")
        return "\n".join(lines)

    def _cells(self, scores: ScopeScores) -> list[str]:
        recalls = ["-" if scores.recall is None else f"{scores.recall[k]:.3f}" for k in self.recall_at]
        return [*recalls, "-" if scores.answers is None else f"{scores.answers.exact_match:.3f}"]
