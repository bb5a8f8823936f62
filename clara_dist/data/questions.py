"""Questions of an evaluation: what is asked, what is right, and which documents are to be told apart.

One JSON object a line::

    {"question_id": "q1", "question": "...", "answer": "..." | ["...", ...], "positives": ["doc_id", ...],
     "candidates": ["doc_id", ...]}

``answer`` lists every spelling that counts as right. ``candidates`` may be left out, in all rows or in none.

KILT's rows, ``{id, input, output: [{answer?, provenance: [{wikipedia_id}]}]}``, are questions over its Wikipedia: their
positives are page ids.

Rows of the joint stage, which say where the answer is, are questions too: CLaRa's own (``question, docs[], pos_index,
answer | gold_answer | golden_answers``) and those of published data sets, see `clara_dist.data.layouts`.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from clara_dist.config.training import DataFormat
from clara_dist.data.documents import BadRow, checked_text
from clara_dist.data.examples import ANSWER_FIELDS, joint_row
from clara_dist.data.json_lines import row_error
from clara_dist.data.layouts import clara_row
from clara_dist.data.rows import iter_rows
from clara_dist.errors import DataError
from clara_dist.store import files


@dataclass(frozen=True, slots=True)
class EvalQuestion:
    """One question.

    Attributes:
        question_id: Unique in its file.
        question: As a user would ask it.
        answers: Right answers, matching any of them is right; none where only retrieval is to be evaluated.
        positives: doc_ids of the documents that hold the answer, at least one.
        candidates: doc_ids to choose from; empty if the file names none.
        grades: How relevant each positive is, at least 1; empty: all the same.
    """

    question_id: str
    question: str
    answers: tuple[str, ...]
    positives: tuple[str, ...]
    candidates: tuple[str, ...] = ()
    grades: tuple[int, ...] = ()


@dataclass(frozen=True)
class QuestionFile:
    """Questions that are read anew each time they are iterated over, and never held: all of them or none.

    A skipped question would change every figure.

    Attributes:
        path: See `iter_rows`.
        layout: See `clara_row`.
    """

    path: str
    layout: DataFormat = "auto"

    def __iter__(self) -> Iterator[EvalQuestion]:
        """The questions, one by one.

        Raises:
            DataError: The data cannot be read or has no questions, or a row is wrong; names place and reason. Of two
                questions with one id the second is named, when all have been read.
        """
        keys = array("Q")
        names_candidates = False
        for place, question in self._placed():
            if keys and bool(question.candidates) != names_candidates:
                raise row_error(place, BadRow("candidates must be given in all rows or in none"))
            names_candidates = bool(question.candidates)
            keys.append(_key(question.question_id))
            yield question
        if not keys:
            raise DataError(f"{self.path} has no questions")
        values, counts = np.unique(np.frombuffer(keys, np.uint64), return_counts=True)
        if len(values) < len(keys):
            self._refuse_repeated({int(value) for value in values[counts > 1]})

    def _placed(self) -> Iterator[tuple[str, EvalQuestion]]:
        for place, row in iter_rows(self.path):
            try:
                if "positives" in row:
                    question = _question(row)
                elif "input" in row and "output" in row:
                    question = _kilt(row)
                else:
                    question = _published(place, row, self.layout)
            except BadRow as bad:
                raise row_error(place, bad) from None
            yield place, question

    def _refuse_repeated(self, keys: Collection[int]) -> None:
        """Find the two places of an id; other ids may share its key."""
        place_of: dict[str, str] = {}
        for place, question in self._placed():
            own = question.question_id
            if own in place_of:
                raise row_error(place, BadRow(f"question_id {own!r} is that of {place_of[own]}"))
            if _key(own) in keys:
                place_of[own] = place


def _key(question_id: str) -> int:
    return int.from_bytes(blake2b(question_id.encode(), digest_size=8).digest(), "little")


def read_questions(path: str, layout: DataFormat = "auto") -> list[EvalQuestion]:
    """All questions of a `QuestionFile`; raises as it does."""
    return list(QuestionFile(path, layout))


def _question(row: Mapping[str, Any]) -> EvalQuestion:
    answer = row.get("answer")
    return EvalQuestion(
        question_id=checked_text("question_id", row.get("question_id")),
        question=checked_text("question", row.get("question")),
        answers=_texts("answer", [answer] if isinstance(answer, str) else answer),
        positives=_texts("positives", row.get("positives")),
        candidates=_texts("candidates", row["candidates"]) if row.get("candidates") is not None else (),
    )


def _kilt(row: Mapping[str, Any]) -> EvalQuestion:
    """Outputs may name an answer, pages, or both; pages that occur several times count once."""
    outputs = row["output"]
    if not isinstance(outputs, list) or not all(isinstance(output, Mapping) for output in outputs):
        raise BadRow("output is not a list of objects, as KILT has it")
    answers = [output["answer"] for output in outputs if output.get("answer")]
    pages = [str(page["wikipedia_id"]) for output in outputs for page in output.get("provenance") or []]
    return EvalQuestion(
        question_id=checked_text("id", row.get("id")),
        question=checked_text("input", row.get("input")),
        answers=_texts("answer", list(dict.fromkeys(answers))) if answers else (),
        positives=_texts("provenance", list(dict.fromkeys(pages))),
    )


def _published(place: str, row: Mapping[str, Any], layout: DataFormat) -> EvalQuestion:
    """A row of training data as a question; its place names it where it has no id."""
    own = clara_row(row, layout)
    if own.get("answerable") is False:
        raise BadRow("the question cannot be answered from its paragraphs")
    example = joint_row(own)
    if not example.positives:
        raise BadRow("it is not known which documents hold the answer (positives, or docs with pos_index)")
    answers = next(own[name] for name in ANSWER_FIELDS if own.get(name) is not None)
    answers = [answers] if isinstance(answers, str) else list(dict.fromkeys(answers))
    return EvalQuestion(
        question_id=checked_text("question_id", own.get("question_id") or files.split(place)[1]),
        question=example.questions[0],
        answers=_texts("answer", answers),
        positives=tuple(example.candidate_ids[i] for i in example.positives),
        candidates=example.candidate_ids,
    )


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise BadRow(f"{name} must be a list that is not empty")
    texts = tuple(checked_text(f"{name}[{i}]", text) for i, text in enumerate(value))
    if len(set(texts)) < len(texts):
        repeated = next(text for i, text in enumerate(texts) if text in texts[:i])
        raise BadRow(f"{name} has {repeated!r} twice")
    return texts
