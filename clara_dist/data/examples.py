"""Training examples: the published row formats, read strictly.

A bad row stops the reading: training data is never dropped in silence. On disk, one JSON object per line:

- stages ``compression``, ``instruct``, ``base``: ``{data_type: "qa" | "answer" | "paraphrase", question[], answers[],
  docs[]}``; ``base`` also reads ``supervise_documents: bool``;
- stage ``joint``: ``{question, gold_answer | answer, docs[] | doc_ids[], pos_index[]}``. ``docs`` are texts, named by
  their content hash exactly as the corpus reader names them; ``doc_ids`` are ids of the store. Without either the
  example has no candidates of its own, which is enough for candidates from the corpus.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from clara_dist.config.training import StageName
from clara_dist.data.documents import BadRow, checked_id, checked_text, content_id
from clara_dist.data.json_lines import iter_objects, row_error
from clara_dist.errors import DataError

ExampleTask = Literal["answer", "qa_generation", "paraphrase"]
_DATA_TYPES = ("qa", "answer", "paraphrase")


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


def read_examples(path: str | Path, stage: StageName) -> list[Example]:
    """Read all examples of a jsonl file (or jsonl.gz) for a stage, in its order.

    A row of stage ``compression`` with ``data_type: qa`` is one example, whose answer lists all its pairs (published
    form); otherwise every question-answer pair is one, and every answer of a ``paraphrase`` row.

    Raises:
        DataError: The file is missing, unreadable or without rows, or a row is bad; names file, line and reason.
    """
    examples: list[Example] = []
    for line, row in iter_objects(str(path)):
        try:
            examples.extend([_joint_example(row)] if stage == "joint" else _text_examples(row, stage))
        except BadRow as bad:
            raise row_error(str(path), line, bad) from None
    if not examples:
        raise DataError(f"{path} is empty: it has no examples")
    return examples


def examples_fingerprint(examples: Iterable[Example]) -> str:
    """Content hash of examples and their order; two files that read the same have the same."""
    digest = hashlib.blake2b(digest_size=16)
    # Not dataclasses.astuple: it copies every value deeply, which takes longer than the hash.
    values = attrgetter(*(field.name for field in fields(Example)))
    for example in examples:
        digest.update(json.dumps(values(example)).encode("ascii") + b"\n")
    return digest.hexdigest()


def _text_examples(row: dict[str, Any], stage: StageName) -> Iterator[Example]:
    data_type = row.get("data_type")
    if data_type not in _DATA_TYPES:
        raise BadRow(f"data_type is {data_type!r}, expected one of {', '.join(_DATA_TYPES)}")
    documents = _texts(row, "docs")
    supervise = row.get("supervise_documents", False) if stage == "base" else False
    if not isinstance(supervise, bool):
        raise BadRow("supervise_documents is no boolean")
    answers = _texts(row, "answers")
    if data_type == "paraphrase":
        for answer in answers:
            yield Example("", answer, documents, task="paraphrase", supervise_documents=supervise)
        return
    questions = _texts(row, "question")
    if len(questions) != len(answers):
        raise BadRow(f"{len(questions)} questions but {len(answers)} answers")
    pairs = list(zip(questions, answers, strict=True))
    if data_type == "qa" and stage == "compression":
        listed = "\n".join(f"Question: {question}\nAnswer: {answer}" for question, answer in pairs)
        yield Example("", listed, documents, task="qa_generation")
        return
    for question, answer in pairs:
        yield Example(question, answer, documents, supervise_documents=supervise)


def _joint_example(row: dict[str, Any]) -> Example:
    (question,) = _texts(row, "question", at_most=1)
    answer = _texts(row, "gold_answer" if row.get("gold_answer") is not None else "answer")[0]
    ids = _candidate_ids(row)
    positives = row.get("pos_index")
    positives = [] if positives is None else positives if isinstance(positives, list) else [positives]
    for position in positives:
        if not isinstance(position, int) or isinstance(position, bool) or not 0 <= position < len(ids):
            raise BadRow(f"pos_index {position!r} is no position among {len(ids)} candidates, which count from 0")
    # A document listed twice is one candidate: a selection of K would waste a slot on its copy.
    place = {doc_id: i for i, doc_id in enumerate(dict.fromkeys(ids))}
    return Example(
        question, answer, candidate_ids=tuple(place), positives=tuple(sorted({place[ids[i]] for i in positives}))
    )


def _candidate_ids(row: dict[str, Any]) -> list[str]:
    if row.get("docs") is not None and row.get("doc_ids") is not None:
        raise BadRow("both docs and doc_ids; candidates are named by one of them")
    if row.get("docs") is not None:
        ids = [content_id(text) for text in _texts(row, "docs")]
    elif row.get("doc_ids") is not None:
        values = row["doc_ids"]
        if not isinstance(values, list) or not values:
            raise BadRow("doc_ids is no list, or an empty one")
        ids = [checked_id(f"doc_ids[{i}]", value) for i, value in enumerate(values)]
    else:
        return []
    return [sys.intern(doc_id) for doc_id in ids]  # popular documents recur in thousands of rows


def _texts(row: dict[str, Any], name: str, *, at_most: int | None = None) -> tuple[str, ...]:
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
