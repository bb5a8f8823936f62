"""Retrieval measures of single questions, by ``ir_measures`` (which asks ``pytrec_eval``, NIST's own code)."""

from __future__ import annotations

from collections.abc import Sequence

import ir_measures
from ir_measures import RR, P, Qrel, R, ScoredDoc, nDCG

from clara_dist.data.questions import EvalQuestion


def measure_rankings(
    questions: Sequence[EvalQuestion], rankings: Sequence[Sequence[str]], recall_at: Sequence[int], depth: int
) -> list[dict[str, float]]:
    """Measures of each question.

    Args:
        questions: With positives, and perhaps grades of them.
        rankings: doc_ids, best first, which name positives as the questions do. A document that stands there several
            times, as several passages, counts once, at its best rank; the others keep their places.
        recall_at: The k of R@k and P@k.
        depth: Of nDCG and of the reciprocal rank; rankings are at most so long.

    Returns:
        ``R@k``, ``P@k``, ``RR@depth`` (MRR is its mean), ``nDCG@depth`` by name.
    """
    measures = [*(R @ k for k in recall_at), *(P @ k for k in recall_at), RR @ depth, nDCG @ depth]
    # Their own ids may repeat in one chunk of a file, or be anything: numbers are safe.
    qrels = [
        Qrel(str(i), doc_id, grade)
        for i, question in enumerate(questions)
        for doc_id, grade in zip(question.positives, question.grades or [1] * len(question.positives), strict=True)
    ]
    run = [
        ScoredDoc(str(i), doc_id, -rank)
        for i, ranking in enumerate(rankings)
        for rank, doc_id in enumerate(_each_once(ranking))
    ]
    found: list[dict[str, float]] = [{str(measure): 0.0 for measure in measures} for _ in questions]
    for value in ir_measures.iter_calc(measures, qrels, run):
        found[int(value.query_id)][str(value.measure)] = float(value.value)
    return found


def first_positive(question: EvalQuestion, ranking: Sequence[str]) -> int | None:
    """Rank of the first right document, counted from 1; None if it is not there."""
    right = set(question.positives)
    return next((rank for rank, doc_id in enumerate(ranking, start=1) if doc_id in right), None)


def _each_once(ranking: Sequence[str]) -> list[str]:
    seen: set[str] = set()
    each = []
    for rank, doc_id in enumerate(ranking):
        # A place that is taken by a repetition is taken by nothing that is right.
        each.append(f"\ufffe{rank}" if doc_id in seen else doc_id)
        seen.add(doc_id)
    return each
