"""Runs and judgements as TREC's tools read them: ``qid Q0 docid rank score tag`` and ``qid 0 docid relevance``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

import numpy as np

from clara_dist.evaluation.records import AnswerRecord


def write_runs(records: Iterable[AnswerRecord], directory: Path) -> list[Path]:
    """A run for each method that retrieves and each scope, and ``qrels.trec``; white space in ids becomes ``%20``.

    A document that stands in a ranking several times, as several passages, is written once, at its best rank.
    """
    directory.mkdir(parents=True, exist_ok=True)
    qrels = directory / "qrels.trec"
    paths: dict[str, Path] = {}
    judging: tuple[str, str] | None = None
    with ExitStack() as stack:
        judged = stack.enter_context(qrels.open("w", encoding="utf-8"))
        runs: dict[str, TextIO] = {}
        for record in records:
            # Every method has a record of every question: those of one name them all.
            judging = judging or (record.method, record.scope)
            if judging == (record.method, record.scope):
                judged.writelines(f"{_token(record.question_id)} 0 {_token(doc)} 1\n" for doc in record.positives)
            if not record.ranking:
                continue
            tag = f"{re.sub(r'[^A-Za-z0-9]+', '-', record.method)}-{record.scope}"
            if tag not in runs:
                paths[tag] = directory / f"{tag}.trec"
                runs[tag] = stack.enter_context(paths[tag].open("w", encoding="utf-8"))
            runs[tag].writelines(_lines(record, tag))
    return [*paths.values(), qrels]


def _lines(record: AnswerRecord, tag: str) -> Iterator[str]:
    best: dict[str, float] = {}
    ceiling = np.float32(np.inf)
    for doc_id, score in zip(record.ranking, record.ranking_scores, strict=True):
        if doc_id not in best:
            # The tools sort by this column, in single precision, and break ties by the id: equals go down a hair.
            ceiling = min(np.float32(score), np.nextafter(ceiling, np.float32(-np.inf)))
            best[doc_id] = float(ceiling)
    for rank, (doc_id, score) in enumerate(best.items(), start=1):
        yield f"{_token(record.question_id)} Q0 {_token(doc_id)} {rank} {score:.9g} {tag}\n"


def _token(text: str) -> str:
    return re.sub(r"\s", lambda match: quote(match[0]), text)
