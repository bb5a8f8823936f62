"""Runs and judgements as TREC's tools read them: ``qid Q0 docid rank score tag`` and ``qid 0 docid relevance``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from clara_dist.evaluation.records import AnswerRecord


def write_runs(records: Sequence[AnswerRecord], directory: Path) -> list[Path]:
    """A run for each method that retrieves and each scope, and ``qrels.trec``; white space in ids becomes ``%20``.

    A document that stands in a ranking several times, as several passages, is written once, at its best rank.
    """
    directory.mkdir(parents=True, exist_ok=True)
    runs: dict[str, list[str]] = {}
    judged: dict[str, tuple[str, ...]] = {}
    for record in records:
        judged[record.question_id] = record.positives
        if not record.ranking:
            continue
        tag = f"{re.sub(r'[^A-Za-z0-9]+', '-', record.method)}-{record.scope}"
        best: dict[str, float] = {}
        ceiling = np.float32(np.inf)
        for doc_id, score in zip(record.ranking, record.ranking_scores, strict=True):
            if doc_id not in best:
                # The tools sort by this column, in single precision, and break ties by the id: equals go down a hair.
                ceiling = min(np.float32(score), np.nextafter(ceiling, np.float32(-np.inf)))
                best[doc_id] = float(ceiling)
        lines = runs.setdefault(tag, [])
        for rank, (doc_id, score) in enumerate(best.items(), start=1):
            lines.append(f"{_token(record.question_id)} Q0 {_token(doc_id)} {rank} {score:.9g} {tag}\n")
    paths = []
    for tag, lines in runs.items():
        paths.append(directory / f"{tag}.trec")
        paths[-1].write_text("".join(lines), encoding="utf-8")
    qrels = [f"{_token(key)} 0 {_token(doc_id)} 1\n" for key, positives in judged.items() for doc_id in positives]
    (directory / "qrels.trec").write_text("".join(qrels), encoding="utf-8")
    return [*paths, directory / "qrels.trec"]


def _token(text: str) -> str:
    return re.sub(r"\s", lambda match: quote(match[0]), text)
