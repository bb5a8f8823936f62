"""Questions of an evaluation: what is asked, what is right, and which documents are to be told apart.

One JSON object a line::

    {"question_id": "q1", "question": "...", "answer": "..." | ["...", ...], "positives": ["doc_id", ...],
     "candidates": ["doc_id", ...]}

``answer`` lists every spelling that counts as right. ``candidates`` may be left out, in all rows or in none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clara_dist.data.documents import BadRow, checked_text
from clara_dist.data.json_lines import iter_objects, row_error
from clara_dist.errors import DataError


@dataclass(frozen=True, slots=True)
class EvalQuestion:
    """One question.

    Attributes:
        question_id: Unique in its file.
        question: As a user would ask it.
        answers: Right answers, at least one; matching any of them is right.
        positives: doc_ids of the documents that hold the answer, at least one.
        candidates: doc_ids to choose from; empty if the file names none.
    """

    question_id: str
    question: str
    answers: tuple[str, ...]
    positives: tuple[str, ...]
    candidates: tuple[str, ...] = ()


def read_questions(path: str) -> list[EvalQuestion]:
    """Read a file of questions, all of it or nothing: a skipped question would change every figure.

    Raises:
        DataError: The file cannot be read or has no questions, or a row is wrong; names file, line and reason.
    """
    questions: list[EvalQuestion] = []
    line_of: dict[str, int] = {}
    for line, row in iter_objects(path):
        try:
            question = _question(row)
            if question.question_id in line_of:
                raise BadRow(f"question_id {question.question_id!r} is that of line {line_of[question.question_id]}")
            if questions and bool(question.candidates) != bool(questions[0].candidates):
                raise BadRow("candidates must be given in all rows or in none")
        except BadRow as bad:
            raise row_error(path, line, bad) from None
        line_of[question.question_id] = line
        questions.append(question)
    if not questions:
        raise DataError(f"{path} has no questions")
    return questions


def _question(row: Mapping[str, Any]) -> EvalQuestion:
    answer = row.get("answer")
    return EvalQuestion(
        question_id=checked_text("question_id", row.get("question_id")),
        question=checked_text("question", row.get("question")),
        answers=_texts("answer", [answer] if isinstance(answer, str) else answer),
        positives=_texts("positives", row.get("positives")),
        candidates=_texts("candidates", row["candidates"]) if row.get("candidates") is not None else (),
    )


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise BadRow(f"{name} must be a list that is not empty")
    texts = tuple(checked_text(f"{name}[{i}]", text) for i, text in enumerate(value))
    if len(set(texts)) < len(texts):
        repeated = next(text for i, text in enumerate(texts) if text in texts[:i])
        raise BadRow(f"{name} has {repeated!r} twice")
    return texts
