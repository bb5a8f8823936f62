"""Diagnosis of the joint stage's gradient on a model, a store and questions: `clara-dist diagnose selection`.

`clara_dist.evaluation.swaps` says what a swap is, and what is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from clara_dist.core import cosine_scores
from clara_dist.data.examples import Example, iter_example_rows
from clara_dist.evaluation.rankers import QueryEncoder, known_rows
from clara_dist.evaluation.selection_report import SelectionDiagnosis, summarize
from clara_dist.evaluation.swaps import measure_swaps
from clara_dist.inference.answer_loss import AnswerLoss as GeneratorLoss
from clara_dist.inference.reasoner import Reasoner
from clara_dist.model.clara import ClaraModel
from clara_dist.retrieval.bank import MemoryBank
from clara_dist.retrieval.opening import open_bank

# Questions whose candidates are held at once.
_QUESTIONS = 8


class AnswerLoss(Protocol):
    """Losses ``[B]`` of known answers, such as `clara_dist.inference.answer_loss.AnswerLoss`."""

    def __call__(self, questions: Sequence[str], answers: Sequence[str], memory_BKMD: Tensor) -> Tensor: ...


def first_examples(data: str, n: int) -> list[Example]:
    """The first n examples of the joint stage's data; no more of it is read.

    Raises:
        DataError: The data cannot be read, or one of these rows is bad.
    """
    rows = (row for _, row in iter_example_rows(data, "joint") if row is not None)
    return list(islice((example for row in rows for example in row.examples()), n))


def diagnose_model(
    model: str | Path, store: str, examples: Sequence[Example], *, device: str = "auto", **settings: Any
) -> SelectionDiagnosis:
    """`diagnose_selection` of a model directory.

    Before the joint stage the reasoner is the copy of the compressor that the stage would start from.

    Args:
        model: The directory.
        store: Memory store of this model's compressor.
        examples: Rows of the joint stage.
        device: ``auto`` takes a GPU if there is one.
        settings: As `diagnose_selection` takes them.

    Raises:
        ModelError: The model cannot be loaded.
        FingerprintMismatchError: Another model wrote the store.
        DataError: The store lacks a document of the examples.
        SelectionError: A question has fewer candidates than ``top_k``.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    clara = ClaraModel.from_pretrained(model, device=device)
    if clara.config.stage != "joint":
        clara.copy_role("compressor", "query_reasoner")
    bank = open_bank(store, clara.fingerprint_fields(), device=device)
    return diagnose_selection(examples, bank, Reasoner(clara), GeneratorLoss(clara), **settings)


def diagnose_selection(
    examples: Sequence[Example],
    bank: MemoryBank,
    reasoner: QueryEncoder,
    answer_loss: AnswerLoss,
    *,
    top_k: int,
    temperature: float,
    n_candidates: int | None = None,
    batch_size: int = 64,
    on_done: Callable[[int], object] = lambda n: None,
) -> SelectionDiagnosis:
    """Try every swap of every question's documents, and compare with what training believes.

    It costs about ``len(examples) * top_k * N`` answers' forward passes.

    Args:
        examples: Rows of the joint stage. Where their positives are known, the report is split by them.
        bank: The store.
        reasoner: The model's.
        answer_loss: The model's generator.
        top_k: Documents that the generator reads.
        temperature: tau of the estimators.
        n_candidates: Candidates are the store's best N of each question; None: the example's own.
        batch_size: Swaps of one forward pass.
        on_done: Called with a number of questions that are finished.

    Raises:
        DataError: The store lacks a document of the examples.
        SelectionError: A question has fewer candidates than ``top_k``.
    """
    measured, golds = [], []
    for start in range(0, len(examples), _QUESTIONS):
        some = [examples[i] for i in range(start, min(start + _QUESTIONS, len(examples)))]
        query_BX = torch.from_numpy(reasoner.query([example.question for example in some])).to(bank.device)
        rows_BN = _given(some, bank) if n_candidates is None else bank.search(query_BX, n_candidates).cpu()
        memory_BNMD = bank.gather(rows_BN)

        def loss(questions_S: Tensor, memory_SKMD: Tensor, some: Sequence[Example] = some) -> Tensor:
            asked = [some[i] for i in questions_S.tolist()]
            return answer_loss([e.question for e in asked], [e.answer for e in asked], memory_SKMD)

        swaps = measure_swaps(
            loss,
            cosine_scores(query_BX, memory_BNMD),
            memory_BNMD,
            top_k,
            temperature=temperature,
            mask_BN=(rows_BN >= 0).to(bank.device),
            batch_size=batch_size,
        )
        measured.append(swaps)
        golds.append(_gold(some, rows_BN, bank))
        on_done(len(some))
    return summarize(measured, golds, temperature=temperature)


def _given(examples: Sequence[Example], bank: MemoryBank) -> Tensor:
    """The examples' own candidates as store rows, padded with -1."""
    rows = known_rows(bank.store, [example.candidate_ids for example in examples])
    return torch.nn.utils.rnn.pad_sequence([torch.from_numpy(r) for r in rows], batch_first=True, padding_value=-1)


def _gold(examples: Sequence[Example], rows_BN: Tensor, bank: MemoryBank) -> Tensor | None:
    """Which candidates are known to hold the answer; None if a question does not say."""
    if not all(example.positives for example in examples):
        return None
    positives = known_rows(bank.store, [[e.candidate_ids[p] for p in e.positives] for e in examples])
    return torch.stack(
        [torch.isin(rows_N, torch.from_numpy(gold)) for rows_N, gold in zip(rows_BN, positives, strict=True)]
    )
