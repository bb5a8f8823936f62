"""Training examples: rows of all stages, read strictly.

A bad row stops the reading: training data is never dropped in silence. CLaRa's own rows, each a JSON object:

- stages ``compression``, ``instruct``, ``base``: ``{data_type: "qa" | "answer" | "paraphrase", question[], answers[],
  docs[]}``, or one question ``{question, docs[], answer | gold_answer}``, which is ``answer``; ``base`` also reads
  ``supervise_documents: bool``;
- stage ``joint``: ``{question, gold_answer | answer | golden_answers, docs[] | doc_ids[], pos_index[]}``. ``docs`` are
  texts, named by their content hash exactly as the corpus reader names them; ``doc_ids`` are ids of the store. Without
  either the example has no candidates of its own, which is enough for candidates from the corpus.

Data sets in published layouts are read as such rows, see `clara_dist.data.layouts`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from clara_dist.config.training import DataFormat, StageName
from clara_dist.data.documents import BadRow, checked_id, checked_text, content_id
from clara_dist.data.json_lines import row_error
from clara_dist.data.layouts import clara_row
from clara_dist.data.rows import iter_rows
from clara_dist.errors import DataError

ExampleTask = Literal["answer", "qa_generation", "paraphrase"]
_DATA_TYPES = ("qa", "answer", "paraphrase")
# Of a single question; the joint stage learns the first of them that a row has.
ANSWER_FIELDS = ("gold_answer", "golden_answers", "answer")


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt and its answer.

    Attributes:
        question: Empty for the tasks that ask none.
        answer: What the generator must say.
        documents: Texts to read, shared by the examples of one row; none in the joint stage, which reads the store.
        candidate_ids: Joint stage: doc_ids to choose from, each once.
        positives: Positions in ``candidate_ids`` of the documents that hold the answer, where known; they are
            measured, never trained on.
        task: ``answer`` the question; ``qa_generation``: write questions and answers; ``paraphrase`` the documents.
        supervise_documents: Stage ``base``: the documents' own tokens are a target too.
    """

    question: str
    answer: str
    documents: tuple[str, ...] = ()
    candidate_ids: tuple[str, ...] = ()
    positives: tuple[int, ...] = ()
    task: ExampleTask = "answer"
    supervise_documents: bool = False


@dataclass(frozen=True, slots=True)
class ExampleRow:
    """The examples of one row: its question-answer pairs, which share all the rest. Fields as of `Example`."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]
    documents: tuple[str, ...] = ()
    candidate_ids: tuple[str, ...] = ()
    positives: tuple[int, ...] = ()
    task: ExampleTask = "answer"
    supervise_documents: bool = False

    def examples(self) -> Iterator[Example]:
        for question, answer in zip(self.questions, self.answers, strict=True):
            yield Example(
                question,
                answer,
                self.documents,
                self.candidate_ids,
                self.positives,
                self.task,
                self.supervise_documents,
            )


def iter_example_rows(
    data: str, stage: StageName, *, layout: DataFormat = "auto", max_documents: int | None = None
) -> Iterator[tuple[str, ExampleRow | None]]:
    """Yield (place, row) of data for a stage, in its order, one at a time.

    A row of stage ``compression`` with ``data_type: qa`` is one example, whose answer lists all its pairs (published
    form); otherwise every question-answer pair is one, and every answer of a ``paraphrase`` row.

    Args:
        data: See `iter_rows`.
        stage: Decides what is read of a row.
        layout: See `clara_row`.
        max_documents: Leave documents beyond out, see `_chosen`.

    Yields:
        None in place of a question that its paragraphs do not answer.

    Raises:
        DataError: The data is missing, unreadable or without rows, or a row is bad; names place and reason.
    """
    place = None
    for place, row in iter_rows(data):
        try:
            own = clara_row(row, layout)
            if own.get("answerable") is False:
                yield place, None
                continue
            found = joint_row(own, max_documents) if stage == "joint" else _text_row(own, stage, max_documents)
        except BadRow as bad:
            raise row_error(place, bad) from None
        yield place, found
    if place is None:
        raise DataError(f"{data} is empty: it has no examples")


def read_examples(path: str | Path, stage: StageName) -> list[Example]:
    """All examples of data that fits into memory; see `iter_example_rows`."""
    return [example for _, row in iter_example_rows(str(path), stage) if row is not None for example in row.examples()]


class ExamplesDigest:
    """Content hash of examples and their order, one after the other; two files that read the same have the same."""

    # Not dataclasses.astuple: it copies every value deeply, which takes longer than the hash.
    _values = staticmethod(attrgetter(*(field.name for field in fields(Example))))

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=16)

    def update(self, examples: Iterable[Example]) -> None:
        for example in examples:
            self._digest.update(json.dumps(self._values(example)).encode("ascii") + b"\n")

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def _text_row(row: Mapping[str, Any], stage: StageName, max_documents: int | None) -> ExampleRow:
    data_type = row.get("data_type")
    if data_type is None and "answers" not in row:
        return _single_row(row, stage, max_documents)
    if data_type not in _DATA_TYPES:
        raise BadRow(f"data_type is {data_type!r}, expected one of {', '.join(_DATA_TYPES)}")
    documents = _texts(row, "docs")
    documents = tuple(documents[i] for i in _chosen(len(documents), (), max_documents))
    supervise = _supervises(row, stage)
    answers = _texts(row, "answers")
    if data_type == "paraphrase":
        blank = ("",) * len(answers)
        return ExampleRow(blank, answers, documents, task="paraphrase", supervise_documents=supervise)
    questions = _texts(row, "question")
    if len(questions) != len(answers):
        raise BadRow(f"{len(questions)} questions but {len(answers)} answers")
    if data_type == "qa" and stage == "compression":
        pairs = zip(questions, answers, strict=True)
        listed = "\n".join(f"Question: {question}\nAnswer: {answer}" for question, answer in pairs)
        return ExampleRow(("",), (listed,), documents, task="qa_generation")
    return ExampleRow(questions, answers, documents, supervise_documents=supervise)


def _single_row(row: Mapping[str, Any], stage: StageName, max_documents: int | None) -> ExampleRow:
    """One question over its documents.

    Where a row has a teacher's ``answer`` beside the ``gold_answer``, the teacher's is learnt, as in the published
    instruct stage.
    """
    questions = _texts(row, "question", at_most=1)
    answer = _texts(row, next((name for name in reversed(ANSWER_FIELDS) if row.get(name) is not None), "answer"))[0]
    documents = _texts(row, "docs")
    documents = tuple(documents[i] for i in _chosen(len(documents), _positives(row, len(documents)), max_documents))
    return ExampleRow(questions, (answer,), documents, supervise_documents=_supervises(row, stage))


def _supervises(row: Mapping[str, Any], stage: StageName) -> bool:
    supervise = row.get("supervise_documents", False) if stage == "base" else False
    if not isinstance(supervise, bool):
        raise BadRow("supervise_documents is no boolean")
    return supervise


def joint_row(row: Mapping[str, Any], max_documents: int | None = None) -> ExampleRow:
    """One question and its candidates, of a row in CLaRa's form.

    Raises:
        BadRow: It has no question or no answer, or names its candidates wrongly.
    """
    questions = _texts(row, "question", at_most=1)
    answer = _texts(row, next((name for name in ANSWER_FIELDS if row.get(name) is not None), "answer"))[0]
    ids = _candidate_ids(row)
    positive_ids = {ids[i] for i in _positives(row, len(ids))}
    # A document listed twice is one candidate: a selection of K would waste a slot on its copy.
    ids = list(dict.fromkeys(ids))
    chosen = _chosen(len(ids), [i for i, doc_id in enumerate(ids) if doc_id in positive_ids], max_documents)
    candidates = tuple(ids[i] for i in chosen)
    positives = tuple(i for i, doc_id in enumerate(candidates) if doc_id in positive_ids)
    return ExampleRow(questions, (answer,), candidate_ids=candidates, positives=positives)


def _positives(row: Mapping[str, Any], n_documents: int) -> list[int]:
    positives = row.get("pos_index")
    positives = [] if positives is None else positives if isinstance(positives, list) else [positives]
    for position in positives:
        if not isinstance(position, int) or isinstance(position, bool) or not 0 <= position < n_documents:
            raise BadRow(f"pos_index {position!r} is no position among {n_documents} candidates, which count from 0")
    return positives


def _chosen(n: int, positives: Sequence[int], limit: int | None) -> list[int]:
    """Positions of the documents that are kept, ascending: right and wrong ones by turns, as long as there are both.

    Natural Questions have up to a hundred right passages, MuSiQue four among twenty: neither kind should be all.
    """
    if limit is None or n <= limit:
        return list(range(n))
    right = dict.fromkeys(positives)
    wrong = [i for i in range(n) if i not in right]
    by_turns = itertools.chain.from_iterable(itertools.zip_longest(right, wrong))
    return sorted(itertools.islice((i for i in by_turns if i is not None), limit))


def _candidate_ids(row: Mapping[str, Any]) -> list[str]:
    if row.get("docs") is not None and row.get("doc_ids") is not None:
        raise BadRow("both docs and doc_ids; candidates are named by one of them")
    if row.get("docs") is not None:
        return [content_id(text) for text in _texts(row, "docs")]
    if row.get("doc_ids") is None:
        return []
    values = row["doc_ids"]
    if not isinstance(values, list) or not values:
        raise BadRow("doc_ids is no list, or an empty one")
    return [checked_id(f"doc_ids[{i}]", value) for i, value in enumerate(values)]


def _texts(row: Mapping[str, Any], name: str, *, at_most: int | None = None) -> tuple[str, ...]:
    """The strings of a field that is a string or a list of strings; at least one, none of them empty."""
    value = row.get(name)
    if value is None:
        raise BadRow(f"missing {name}")
    if isinstance(value, str):
        return (checked_text(name, value),)
    if not isinstance(value, list) or not value:
        raise BadRow(f"{name} is neither a text nor a list of texts, or an empty list")
    if at_most is not None and len(value) > at_most:
        raise BadRow(f"{name} has {len(value)} entries, expected at most {at_most}")
    return tuple(checked_text(f"{name}[{i}]", text) for i, text in enumerate(value))
