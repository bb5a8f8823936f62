"""What an evaluation found, as values, JSON and a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from clara_dist.evaluation.answers import AnswerScores

Scope = Literal["candidates", "corpus"]


@dataclass(frozen=True)
class ScopeScores:
    """One method's figures over one set of documents.

    Attributes:
        recall: k -> mean share of a question's positives that are found, wholly or as a passage, among the first k
            rows; None for a method that does not retrieve.
        answers: Means over all questions.
    """

    recall: Mapping[int, float] | None
    answers: AnswerScores


@dataclass(frozen=True)
class MethodScores:
    """One row of the table; ``candidates`` is None where the questions name none."""

    method: str
    candidates: ScopeScores | None
    corpus: ScopeScores


@dataclass(frozen=True)
class AnswerRecord:
    """One answer: which documents were read, and what came out."""

    question_id: str
    question: str
    method: str
    scope: Scope
    doc_ids: tuple[str, ...]
    answer: str
    right_answers: tuple[str, ...]
    scores: AnswerScores


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
        records: Every single answer.
    """

    n_questions: int
    n_documents: int
    n_passages: int
    n_candidates: tuple[int, int] | None
    top_k: int
    recall_at: tuple[int, ...]
    max_tokens: int
    methods: tuple[MethodScores, ...]
    records: tuple[AnswerRecord, ...]

    def __getitem__(self, method: str) -> MethodScores:
        return next(row for row in self.methods if row.method == method)

    def to_dict(self) -> dict[str, Any]:
        """All but the single answers, fit for JSON."""
        tree = asdict(self)
        del tree["records"]
        return tree

    def write(self, directory: str | Path) -> None:
        """Write ``report.json``, ``answers.jsonl`` (the single answers) and ``table.txt``."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "report.json").write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        lines = [json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in self.records]
        (directory / "answers.jsonl").write_text("".join(lines), encoding="utf-8")
        (directory / "table.txt").write_text(self.table() + "\n", encoding="utf-8")

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
        error = 0.5 / self.n_questions**0.5
        lines.append(f"{self.n_questions:,} questions; answers read {read}; sampling error at most {error:.3f}")
        return "\n".join(lines)

    def _cells(self, scores: ScopeScores) -> list[str]:
        recalls = ["-" if scores.recall is None else f"{scores.recall[k]:.3f}" for k in self.recall_at]
        return [*recalls, f"{scores.answers.exact_match:.3f}"]
