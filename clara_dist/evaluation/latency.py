"""How long one question takes alone. The evaluation's own batches say how many fit, not how long one waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from clara_dist.data.questions import EvalQuestion
from clara_dist.evaluation.evaluate import AnswerGenerator
from clara_dist.evaluation.rankers import Corpus, QueryEncoder, Searcher

STEPS = ("reason", "retrieve", "generate")
_PERCENTILES = (50, 90, 99)


def ask_alone(
    questions: Sequence[EvalQuestion],
    reasoner: QueryEncoder,
    searcher: Searcher,
    corpus: Corpus,
    generator: AnswerGenerator,
    *,
    top_k: int,
    max_tokens: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[tuple[float, float, float]]:
    """Ask one question after the other; the first one is asked once before, unmeasured, to warm up.

    Args:
        questions: At least one.
        reasoner: See `clara_dist.evaluation.rankers.LatentRanker`, as for the next two.
        searcher: Of the whole corpus.
        corpus: Memories are read from it.
        generator: See `evaluate`, as for the next two.
        top_k: Documents read, or all there are.
        max_tokens: Longest answer.
        clock: Seconds.

    Returns:
        Seconds of each question, by `STEPS`: question to vector; vector to the memories of ``top_k`` rows; the answer.
    """
    k = min(top_k, corpus.n_documents)
    seconds = []
    for question in [questions[0], *questions]:
        at = [clock()]
        query_1X = reasoner.query([question.question])
        at.append(clock())
        rows_1K = np.asarray(searcher.search(query_1X, k).rows_BK)
        memory_1KMD = [torch.from_numpy(corpus.take_memory(rows_1K[0]))]
        at.append(clock())
        generator.generate([question.question], memory_1KMD, max_tokens=max_tokens)
        at.append(clock())
        seconds.append((at[1] - at[0], at[2] - at[1], at[3] - at[2]))
    return seconds[1:]


def percentiles(seconds: Sequence[tuple[float, float, float]]) -> Mapping[str, Any]:
    """Milliseconds of each step and of all together (p50, p90, p99), as ``latency.json`` has them."""
    steps_QS = np.asarray(seconds) * 1e3
    columns = {**dict(zip(STEPS, steps_QS.T, strict=True)), "total": steps_QS.sum(axis=1)}
    named = {step: {f"p{p}": float(np.percentile(column, p)) for p in _PERCENTILES} for step, column in columns.items()}
    return {"questions": len(seconds), "ms": named}
