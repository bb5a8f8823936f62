"""The token batches of each stage, and what a step draws at random."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clara_dist.config.training import StageConfig
from clara_dist.data.examples import Example
from clara_dist.model import PromptBatch, TextBatch

# The store row of a right document that the store lacks: no search finds it. (-1 is padding.)
NOWHERE = -2


@dataclass(frozen=True)
class StepPlan:
    """What one optimiser step draws at random, equal on all workers and for all of its micro-batches.

    Attributes:
        n_slots: k', how many of the best documents the generator reads (joint stage).
        from_corpus: Candidates are the current top of the whole store, not the examples' lists (joint stage).
    """

    n_slots: int
    from_corpus: bool


def plan_step(stage: StageConfig, step: int) -> StepPlan:
    """The plan of a step: a pure function of seed and step, so that it needs no place in a checkpoint."""
    draw = random.Random(f"{stage.seed}/{step}")
    n_slots = draw.randint(1, stage.top_k) if stage.random_slots else stage.top_k
    candidates = stage.candidates
    share = {"given": 0.0, "corpus": 1.0, "mixed": candidates.corpus_share}[candidates.source]
    return StepPlan(n_slots, draw.random() < share)


@dataclass(frozen=True)
class Totals:
    """Sums over a batch, and after a collective over the global batch: what means are taken over.

    Attributes:
        answer_tokens: Supervised tokens.
        documents: Document slots (a document counts as often as it is read).
        tokens: Tokens that pass through the model.
        truncated: Document slots whose document was longer than ``doc_max_tokens`` and was cut.
    """

    answer_tokens: float
    documents: float
    tokens: float
    truncated: float = 0


@dataclass(frozen=True)
class TextExamples:
    """Batch of the ``base`` stage: documents as text."""

    prompts: PromptBatch

    @property
    def totals(self) -> Totals:
        return Totals(self.prompts.n_answer_tokens, 0, int(self.prompts.lengths_B.sum()))

    def to(self, device: torch.device) -> TextExamples:
        return TextExamples(self.prompts.to(device))


@dataclass(frozen=True)
class CompressionExamples:
    """Batch of the ``compression`` and ``instruct`` stages.

    Attributes:
        documents: The distinct documents of the batch; each is encoded once.
        document_T: int64 ``[T]``, for every slot of the prompts, row-major, the document that it holds.
        prompts: B prompts; ragged numbers of slots are fine.
        n_truncated: How many of the T slots hold a document that was cut.
    """

    documents: TextBatch
    document_T: Tensor
    prompts: PromptBatch
    n_truncated: int

    @property
    def totals(self) -> Totals:
        tokens = int(self.documents.lengths_B.sum()) + int(self.prompts.lengths_B.sum())
        return Totals(self.prompts.n_answer_tokens, len(self.document_T), tokens, self.n_truncated)

    def to(self, device: torch.device) -> CompressionExamples:
        return CompressionExamples(
            self.documents.to(device), self.document_T.to(device), self.prompts.to(device), self.n_truncated
        )


@dataclass(frozen=True)
class JointExamples:
    """Batch of the ``joint`` stage.

    Attributes:
        questions: B questions as the reasoner reads them.
        candidates_BN: int64 store rows, -1 where a shorter list is padded; None: search the whole store.
        positives_B: For each question, the documents that hold its answer, each as its store rows (`NOWHERE` if
            the store lacks it); empty where they are not known.
        prompts: B prompts with k' slots each.
    """

    questions: TextBatch
    candidates_BN: Tensor | None
    positives_B: tuple[tuple[tuple[int, ...], ...], ...]
    prompts: PromptBatch

    @property
    def totals(self) -> Totals:
        tokens = int(self.questions.lengths_B.sum()) + int(self.prompts.lengths_B.sum())
        return Totals(self.prompts.n_answer_tokens, 0, tokens)

    def to(self, device: torch.device) -> JointExamples:
        candidates = None if self.candidates_BN is None else self.candidates_BN.to(device)
        return JointExamples(self.questions.to(device), candidates, self.positives_B, self.prompts.to(device))


Batch = TextExamples | CompressionExamples | JointExamples
Collate = Callable[[Sequence[Example], StepPlan], Batch]
