"""One row a question, method and scope: what an evaluation is made of, in memory and as a Parquet file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from clara_dist.evaluation.answers import AnswerScores

Scope = Literal["candidates", "corpus"]

_TEXTS = pa.list_(pa.string())
ANSWERS = "answers.parquet"
# Records that are held at a time; a row group of the file.
_PIECE = 4096
SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("scope", pa.string()),
        ("question_id", pa.string()),
        ("question", pa.string()),
        ("doc_ids", _TEXTS),
        ("answer", pa.string()),
        ("right_answers", _TEXTS),
        ("exact_match", pa.float64()),
        ("f1", pa.float64()),
        ("cover_match", pa.float64()),
        ("positives", _TEXTS),
        ("ranking", _TEXTS),
        ("ranking_scores", pa.list_(pa.float64())),
        ("first_positive", pa.int32()),
        ("measures", pa.map_(pa.string(), pa.float64())),
    ]
)


@dataclass(frozen=True)
class AnswerRecord:
    """What one method found for one question, and what was answered from it.

    Attributes:
        doc_ids: Rows of the store that were read, best first.
        answer: None where the questions have no answers, so that none was asked for.
        scores: Of the answer.
        positives: doc_ids of the right documents.
        ranking: doc_ids, best first, deeper than what was read; passages of right documents go by the documents' names.
            Empty for a method that does not retrieve.
        ranking_scores: The method's own, in the same order.
        first_positive: Rank of the first right document, counted from 1; None: not in the ranking.
        measures: Of the ranking, by name.
    """

    question_id: str
    question: str
    method: str
    scope: Scope
    doc_ids: tuple[str, ...]
    answer: str | None
    right_answers: tuple[str, ...]
    scores: AnswerScores | None
    positives: tuple[str, ...] = ()
    ranking: tuple[str, ...] = ()
    ranking_scores: tuple[float, ...] = ()
    first_positive: int | None = None
    measures: Mapping[str, float] = field(default_factory=dict)


def to_table(records: Iterable[AnswerRecord]) -> pa.Table:
    """The records as Arrow, one row each."""
    rows = []
    for r in records:
        scores = {"exact_match": None, "f1": None, "cover_match": None} if r.scores is None else vars(r.scores)
        rows.append(vars(r) | scores | {"measures": list(r.measures.items())})
    return pa.Table.from_pylist(rows, SCHEMA)


def from_table(table: pa.Table) -> list[AnswerRecord]:
    """The records of `to_table`, equal to the last bit."""
    records = []
    for row in table.to_pylist():
        figures = [row.pop(name) for name in ("exact_match", "f1", "cover_match")]
        lists = ("doc_ids", "right_answers", "positives", "ranking", "ranking_scores")
        row |= {name: tuple(row[name]) for name in lists} | {"measures": dict(row["measures"])}
        records.append(AnswerRecord(**row, scores=None if figures[0] is None else AnswerScores(*figures)))
    return records


@dataclass(frozen=True)
class RecordFiles:
    """Records of files, in their order; read piece by piece each time they are iterated over."""

    paths: tuple[Path, ...]

    def __iter__(self) -> Iterator[AnswerRecord]:
        for path in self.paths:
            with pq.ParquetFile(path) as file:
                for i in range(file.num_row_groups):
                    yield from from_table(file.read_row_group(i).cast(SCHEMA))

    def __len__(self) -> int:
        return sum(pq.read_metadata(path).num_rows for path in self.paths)


def write_records(records: Iterable[AnswerRecord], path: Path) -> None:
    """Write Parquet: the file is there whole or not at all. Never more than a piece of the records is held."""
    partial = path.with_suffix(".partial")
    rest = iter(records)
    with pq.ParquetWriter(partial, SCHEMA) as writer:
        while piece := list(islice(rest, _PIECE)):
            writer.write_table(to_table(piece))
    partial.replace(path)


def read_records(path: Path) -> list[AnswerRecord]:
    """Read all that `write_records` wrote."""
    return list(RecordFiles((path,)))
