"""From examples to the token batches of each stage."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from clara_dist.data.examples import Example
from clara_dist.data.prepared import PreparedExamples
from clara_dist.errors import DataError
from clara_dist.model import ClaraTokenizer, PromptBatch, TextBatch, TokenizedPrompt
from clara_dist.retrieval.bank import MemoryBank
from clara_dist.training.batches import NOWHERE, Collate, CompressionExamples, JointExamples, StepPlan, TextExamples
from clara_dist.training.collectives import Group


class TextCollator:
    """Stage ``base``: documents as text in the prompt.

    Args:
        tokenizer: The model's.
        cut_answers: Cut answers that do not fit, see `ClaraTokenizer.prompt_with_answer`; else they are errors.
    """

    def __init__(self, tokenizer: ClaraTokenizer, cut_answers: bool = False) -> None:
        self._tokenizer = tokenizer
        self._cut_answers = cut_answers

    def __call__(self, examples: Sequence[Example], plan: StepPlan) -> TextExamples:
        tokenized, spans = [], []
        for example in examples:
            prompt = self._tokenizer.text_prompt_with_answer(
                example.task, example.question, example.documents, example.answer, cut_answer=self._cut_answers
            )
            tokenized.append(prompt)
            supervised = example.supervise_documents
            spans.append(self._tokenizer.text_span(prompt.prompt_ids, example.documents) if supervised else (0, 0))
        return TextExamples(_prompt_batch(tokenized, self._tokenizer, spans))


class CompressionCollator:
    """Stages ``compression`` and ``instruct``: documents to compress, prompts with a slot for each.

    Arguments as of `TextCollator`.
    """

    def __init__(self, tokenizer: ClaraTokenizer, cut_answers: bool = False) -> None:
        self._tokenizer = tokenizer
        self._cut_answers = cut_answers

    def __call__(self, examples: Sequence[Example], plan: StepPlan) -> CompressionExamples:
        tokenizer = self._tokenizer
        index_of: dict[str, int] = {}
        document_T = [index_of.setdefault(text, len(index_of)) for example in examples for text in example.documents]
        encoded = tokenizer.encode_texts([tokenizer.document_text("", text) for text in index_of])
        prompts = [
            tokenizer.prompt_with_answer(e.task, len(e.documents), e.question, e.answer, cut_answer=self._cut_answers)
            for e in examples
        ]
        return CompressionExamples(
            TextBatch.from_ids([e.ids for e in encoded], tokenizer.pad_id),
            torch.tensor(document_T),
            _prompt_batch(prompts, tokenizer),
            sum(encoded[i].truncated for i in document_T),
        )


class JointCollator:
    """Stage ``joint``: questions, and the store rows of their candidates.

    Args:
        tokenizer: The model's.
        bank: The memory store; documents are named by their ids there.
        cut_answers: As of `TextCollator`.
    """

    def __init__(self, tokenizer: ClaraTokenizer, bank: MemoryBank, cut_answers: bool = False) -> None:
        self._tokenizer = tokenizer
        self._bank = bank
        self._cut_answers = cut_answers

    def __call__(self, examples: Sequence[Example], plan: StepPlan) -> JointExamples:
        tokenizer = self._tokenizer
        questions = tokenizer.encode_questions([example.question for example in examples])
        prompts = [
            tokenizer.prompt_with_answer("answer", plan.n_slots, e.question, e.answer, cut_answer=self._cut_answers)
            for e in examples
        ]
        return JointExamples(
            TextBatch.from_ids([e.ids for e in questions], tokenizer.pad_id),
            None if plan.from_corpus else self._candidates(examples),
            tuple(self._positive_rows(e) for e in examples),
            _prompt_batch(prompts, tokenizer),
        )

    def require_documents(self, doc_ids: Sequence[str]) -> None:
        """Raise a `DataError` unless the store has all of these documents."""
        self._rows(doc_ids)

    def _positive_rows(self, example: Example) -> tuple[tuple[int, ...], ...]:
        """Of each right document. One that the store lacks, where the whole store is searched, is never found."""
        found = self._bank.rows_of([example.candidate_ids[p] for p in example.positives])
        return tuple(tuple(rows.tolist()) or (NOWHERE,) for rows in found)

    def count_missing(self, doc_ids: Sequence[str]) -> int:
        """How many of these documents the store lacks."""
        return sum(not len(rows) for rows in self._bank.rows_of(doc_ids))

    def _candidates(self, examples: Sequence[Example]) -> Tensor:
        rows = [list(chain.from_iterable(self._rows(example.candidate_ids))) for example in examples]
        candidates_BN = torch.full((len(examples), max(map(len, rows))), -1)
        for i, rows_N in enumerate(rows):
            candidates_BN[i, : len(rows_N)] = torch.tensor(rows_N)
        return candidates_BN

    def _rows(self, doc_ids: Sequence[str]) -> list[tuple[int, ...]]:
        """The rows of each document: its passages, if it was split."""
        rows = [tuple(found.tolist()) for found in self._bank.rows_of(doc_ids)]
        missing = [doc_id for doc_id, found in zip(doc_ids, rows, strict=True) if not found]
        if missing:
            raise DataError(
                "documents of the examples are not in the memory store",
                got=f"{len(missing)} of {len(doc_ids)}, first: {missing[0]!r}",
                hint="compress the corpus that the examples were made from",
            )
        return rows


def require_candidates(collate: Collate, examples: PreparedExamples, group: Group) -> None:
    """Look every candidate of the joint stage up in the store, each worker its share, before the first step.

    Raises:
        DataError: The store lacks some.
        TrainingError: Another worker found so.
    """
    failure: DataError | None = None
    if isinstance(collate, JointCollator):
        try:
            for doc_ids in examples.candidate_ids(group.rank, group.world_size):
                collate.require_documents(doc_ids)
        except DataError as error:
            failure = error
    group.raise_together(failure)


def count_missing(collate: Collate, examples: PreparedExamples, group: Group) -> int:
    """How many of the documents that examples of the joint stage name are not in the store. Collective.

    Counted file by file of the prepared examples: a document may count more than once.
    """
    missing = 0
    if isinstance(collate, JointCollator):
        shares = examples.candidate_ids(group.rank, group.world_size)
        missing = sum(collate.count_missing(doc_ids) for doc_ids in shares)
    return int(group.sum([missing])[0])


def _prompt_batch(
    prompts: Sequence[TokenizedPrompt], tokenizer: ClaraTokenizer, spans: Sequence[tuple[int, int]] | None = None
) -> PromptBatch:
    return PromptBatch.from_ids(
        [prompt.prompt_ids for prompt in prompts],
        [prompt.answer_ids for prompt in prompts],
        pad_id=tokenizer.pad_id,
        memory_ids=tokenizer.memory_ids,
        supervised_prompt_spans=spans,
    )
