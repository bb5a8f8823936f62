"""One forward pass of each stage: a module from a batch to its share of the global loss.

Every pass of a step happens inside ``forward``, because DeepSpeed's engine wraps exactly one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from clara_dist.config.training import AblationName, EstimatorName, StageConfig
from clara_dist.core import (
    Selection,
    contrastive_nll,
    cosine_scores,
    mean_answer_loss,
    memory_alignment,
    recall_at_k,
    score_entropy,
    score_margin,
    select_without_gradient,
    soft_mixture,
    straight_through_select,
    token_nll,
)
from clara_dist.model import ClaraModel, PromptBatch
from clara_dist.model.base import LogitsFinish
from clara_dist.retrieval.bank import MemoryBank
from clara_dist.training.batches import NOWHERE, CompressionExamples, JointExamples, TextExamples, Totals
from clara_dist.training.stopwatch import Stopwatch


class StepOutput(NamedTuple):
    """What a micro-batch contributes.

    Attributes:
        loss: Scalar with gradient. Summed over all micro-batches and workers it is the loss of the global batch: means
            are taken over `Totals`, not over what happens to be here.
        shares: Parts of the loss, without gradient, that add up in the same way.
        recalls: One value per question whose positives are known.
        observed: Sum and count, ``[2]``, of what else is known of questions. The names are those of the kind of step,
            whatever the batch: workers add them up.
    """

    loss: Tensor
    shares: dict[str, Tensor]
    recalls: list[float]
    observed: dict[str, Tensor] = {}  # noqa: RUF012 - nobody adds to it

    def without_share(self) -> StepOutput:
        """The same names, contributing nothing."""
        nothing = {name: torch.zeros_like(value) for name, value in self.shares.items()}
        unseen = {name: torch.zeros_like(value) for name, value in self.observed.items()}
        return StepOutput(torch.zeros_like(self.loss), nothing, [], unseen)


class TrainingStep(nn.Module):
    """What the steps share.

    Attributes:
        stopwatch: Marked by the step itself as it goes; on leaving ``forward``, the backward pass begins.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.stopwatch = Stopwatch(device)


class BaseStep(TrainingStep):
    """Language modelling of the answer (and of supervised documents) from text; trains the base LLM itself."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model.device)
        self.model = model
        self._finish_logits = LogitsFinish.of(model)

    def forward(self, batch: TextExamples, totals: Totals) -> StepOutput:
        self.stopwatch.start("generate")
        prompts = batch.prompts
        hidden_BLD = self.model.base_model(input_ids=prompts.input_ids_BL, use_cache=False).last_hidden_state
        predicting_PD = hidden_BLD.flatten(0, 1)[prompts.predict_index_P]
        logits_PV = self._finish_logits(self.model.get_output_embeddings()(predicting_PD))
        loss = mean_answer_loss(token_nll(logits_PV, prompts.labels_P), totals.answer_tokens)
        self.stopwatch.start("backward")
        return StepOutput(loss, {}, [])


class CompressionStep(TrainingStep):
    """Answers from the memories of freshly compressed documents, with memories held near their text's states."""

    def __init__(self, clara: ClaraModel, mse_weight: float) -> None:
        super().__init__(clara.device)
        self.clara = clara
        self.mse_weight = mse_weight

    def forward(self, batch: CompressionExamples, totals: Totals) -> StepOutput:
        self.stopwatch.start("compress")
        aligned = self.mse_weight > 0
        encoded = self.clara.encode("compressor", batch.documents, with_text_mean=aligned)
        self.stopwatch.start("generate")
        memory_TMD = encoded.memory_BMD[batch.document_T]
        answer_loss, observed = answer_loss_of(self, self.clara, batch.prompts, memory_TMD, totals)
        self.stopwatch.start("backward")
        if not aligned:
            return StepOutput(answer_loss, {}, [], observed)
        # A document counts as often as it is read: the mean does not depend on which micro-batch repeats it.
        memory_mean_TD = encoded.memory_BMD.mean(1)[batch.document_T]
        text_mean_TD = cast(Tensor, encoded.text_mean_BD)[batch.document_T]
        alignment = memory_alignment(memory_mean_TD, text_mean_TD) * (len(batch.document_T) / totals.documents)
        shares = {"answer_loss": answer_loss.detach(), "mse": alignment.detach()}
        return StepOutput(answer_loss + self.mse_weight * alignment, shares, [], observed)


class JointStep(TrainingStep):
    """Question -> reasoner -> straight-through choice among stored memories -> generator (arXiv 2511.18659, stage 3).

    The answer loss is the only teacher. Memories come from the store and carry no gradient.
    """

    def __init__(self, clara: ClaraModel, bank: MemoryBank, stage: StageConfig) -> None:
        super().__init__(clara.device)
        self.clara = clara
        self.top_k = stage.top_k
        self.temperature = stage.temperature
        self.estimator: EstimatorName = stage.resolved_estimator
        self.ablation: AblationName | None = stage.ablation
        self.n_candidates = stage.candidates.n
        self._bank = bank

    def forward(self, batch: JointExamples, totals: Totals) -> StepOutput:
        start = self.stopwatch.start
        start("reason")
        query_BX = self.clara.encode("query_reasoner", batch.questions).memory_BMD.flatten(1)
        rows_BN = batch.candidates_BN
        if rows_BN is None:
            start("search")
            rows_BN = self._bank.search(query_BX.detach(), self.n_candidates)
        start("gather")
        mask_BN = rows_BN >= 0
        memory_BNMD = self._bank.gather(rows_BN)
        start("select")
        scores_BN = cosine_scores(query_BX, memory_BNMD)
        n_slots = batch.prompts.memory_index_S.shape[0] // (self.clara.n_memory_tokens * len(rows_BN))
        # All K slots are chosen, also where the generator reads fewer. Chosen alone, leave_own_out's first slot would
        # judge its own document, as the plain form of K = 1 does, and undo what the other batches teach.
        selection = self._select(scores_BN, memory_BNMD, mask_BN)
        gold_BN = _gold(rows_BN, batch)
        observed = self._observe(scores_BN.detach(), rows_BN, gold_BN, batch)
        start("generate")
        memory_TMD = selection.memory_BKX[:, :n_slots].flatten(0, 1)
        loss, of_answers = answer_loss_of(self, self.clara, batch.prompts, memory_TMD, totals)
        recalls = document_recall(rows_BN.gather(1, selection.indices_BK), batch.positives_B)
        shares = {}
        if self.ablation == "contrastive":
            nll_B = contrastive_nll(scores_BN, gold_BN, temperature=self.temperature, mask_BN=mask_BN)
            # Over tokens, as the answer loss is: only its size depends on that, and Adam's steps do not.
            taught = nll_B.sum() / totals.answer_tokens
            shares = {"answer_loss": loss.detach(), "contrastive": taught.detach()}
            loss = loss + taught
        start("backward")
        return StepOutput(loss, shares, recalls, observed | of_answers)

    def _select(self, scores_BN: Tensor, memory_BNMD: Tensor, mask_BN: Tensor) -> Selection:
        if self.ablation in ("hard", "contrastive"):
            return select_without_gradient(scores_BN, memory_BNMD, self.top_k, mask_BN=mask_BN)
        # What is evaluated is what will be served: a hard choice.
        if self.ablation == "soft" and self.training:
            return soft_mixture(scores_BN, memory_BNMD, self.top_k, temperature=self.temperature, mask_BN=mask_BN)
        return straight_through_select(
            scores_BN, memory_BNMD, self.top_k, temperature=self.temperature, estimator=self.estimator, mask_BN=mask_BN
        )

    def _observe(self, scores_BN: Tensor, rows_BN: Tensor, gold_BN: Tensor, batch: JointExamples) -> dict[str, Tensor]:
        """How sure the choice is, and where the gold documents stand; without gradient."""
        mask_BN, device = rows_BN >= 0, rows_BN.device
        searched = batch.candidates_BN is None
        found = document_recall(rows_BN, batch.positives_B) if searched else []
        return {
            "score_entropy": observe(score_entropy(scores_BN, self.temperature, mask_BN)),
            "score_margin": observe(score_margin(scores_BN, mask_BN)),
            "gold_margin": observe(score_margin(scores_BN, mask_BN, gold_BN)),
            "candidates": observe(mask_BN.sum(1)),
            "gold_in_candidates": torch.tensor([sum(found), float(len(found))], dtype=torch.float64, device=device),
        }


def _gold(rows_BN: Tensor, batch: JointExamples) -> Tensor:
    """Which candidates are known to hold the answer, bool ``[B, N]``."""
    gold = [[row for document in positives for row in document] for positives in batch.positives_B]
    width = max(1, *map(len, gold))
    gold_BP = torch.tensor([rows + [NOWHERE] * (width - len(rows)) for rows in gold], device=rows_BN.device)
    return (rows_BN[..., None] == gold_BP[:, None]).any(-1)


def answer_loss_of(
    step: TrainingStep, clara: ClaraModel, prompts: PromptBatch, memory_TMD: Tensor, totals: Totals
) -> tuple[Tensor, dict[str, Tensor]]:
    """The answer loss of a batch and, in evaluation, the share of exact answers.

    A greedy answer is the right one, token for token and ended by EOS, just where each token of the right answer is the
    best guess behind those before it: so nothing need be generated to know.
    """
    logits_PV = clara.answer_logits(prompts, memory_TMD)
    loss = mean_answer_loss(token_nll(logits_PV, prompts.labels_P), totals.answer_tokens)
    if step.training:
        return loss, {}
    row_P = prompts.predict_index_P // prompts.input_ids_BL.shape[1]
    wrong_P = (logits_PV.argmax(-1) != prompts.labels_P).double()
    wrong_B = torch.zeros(len(prompts.lengths_B), dtype=torch.float64, device=row_P.device).index_add(0, row_P, wrong_P)
    return loss, {"exact_match": observe((wrong_B == 0).double())}


def observe(values_B: Tensor) -> Tensor:
    """``[2]``: sum and number of the values that are numbers, for `StepOutput.observed`."""
    values_B = values_B.double()
    return torch.stack([values_B.nan_to_num(0.0).sum(), (~values_B.isnan()).double().sum()])


def document_recall(rows_BK: Tensor, positives_B: Sequence[Sequence[Sequence[int]]]) -> list[float]:
    """Recall of documents that may be several rows: one is found where any of its rows is among the K."""
    documents = [{row: document[0] for document in positives for row in document} for positives in positives_B]
    found = [[first.get(row, row) for row in rows] for first, rows in zip(documents, rows_BK.tolist(), strict=True)]
    return recall_at_k(found, [set(first.values()) for first in documents])
