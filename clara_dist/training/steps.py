"""One forward pass of each stage: a module from a batch to its share of the global loss.

Every pass of a step happens inside ``forward``, because DeepSpeed's engine wraps exactly one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from clara_dist.config.training import EstimatorName, StageConfig
from clara_dist.core import (
    cosine_scores,
    mean_answer_loss,
    memory_alignment,
    recall_at_k,
    straight_through_select,
    token_nll,
)
from clara_dist.model import ClaraModel
from clara_dist.model.base import LogitsFinish
from clara_dist.retrieval.bank import MemoryBank
from clara_dist.training.batches import CompressionExamples, JointExamples, TextExamples, Totals


class StepOutput(NamedTuple):
    """What a micro-batch contributes.

    Attributes:
        loss: Scalar with gradient. Summed over all micro-batches and workers it is the loss of the global batch: means
            are taken over `Totals`, not over what happens to be here.
        shares: Parts of the loss, without gradient, that add up in the same way.
        recalls: One value per question whose positives are known.
    """

    loss: Tensor
    shares: dict[str, Tensor]
    recalls: list[float]


class BaseStep(nn.Module):
    """Language modelling of the answer (and of supervised documents) from text; trains the base LLM itself."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self._finish_logits = LogitsFinish.of(model)

    def forward(self, batch: TextExamples, totals: Totals) -> StepOutput:
        prompts = batch.prompts
        hidden_BLD = self.model.base_model(input_ids=prompts.input_ids_BL, use_cache=False).last_hidden_state
        predicting_PD = hidden_BLD.flatten(0, 1)[prompts.predict_index_P]
        logits_PV = self._finish_logits(self.model.get_output_embeddings()(predicting_PD))
        loss = mean_answer_loss(token_nll(logits_PV, prompts.labels_P), totals.answer_tokens)
        return StepOutput(loss, {}, [])


class CompressionStep(nn.Module):
    """Answers from the memories of freshly compressed documents, with memories held near their text's states."""

    def __init__(self, clara: ClaraModel, mse_weight: float) -> None:
        super().__init__()
        self.clara = clara
        self.mse_weight = mse_weight

    def forward(self, batch: CompressionExamples, totals: Totals) -> StepOutput:
        aligned = self.mse_weight > 0
        encoded = self.clara.encode("compressor", batch.documents, with_text_mean=aligned)
        nll_P = self.clara.answer_nll(batch.prompts, encoded.memory_BMD[batch.document_T])
        answer_loss = mean_answer_loss(nll_P, totals.answer_tokens)
        if not aligned:
            return StepOutput(answer_loss, {}, [])
        # A document counts as often as it is read: the mean does not depend on which micro-batch repeats it.
        memory_mean_TD = encoded.memory_BMD.mean(1)[batch.document_T]
        text_mean_TD = cast(Tensor, encoded.text_mean_BD)[batch.document_T]
        alignment = memory_alignment(memory_mean_TD, text_mean_TD) * (len(batch.document_T) / totals.documents)
        shares = {"answer_loss": answer_loss.detach(), "mse": alignment.detach()}
        return StepOutput(answer_loss + self.mse_weight * alignment, shares, [])


class JointStep(nn.Module):
    """Question -> reasoner -> straight-through choice among stored memories -> generator (arXiv 2511.18659, stage 3).

    The answer loss is the only teacher. Memories come from the store and carry no gradient.
    """

    def __init__(self, clara: ClaraModel, bank: MemoryBank, stage: StageConfig) -> None:
        super().__init__()
        self.clara = clara
        self.top_k = stage.top_k
        self.temperature = stage.temperature
        self.estimator: EstimatorName = stage.resolved_estimator
        self.n_candidates = stage.candidates.n
        self._bank = bank

    def forward(self, batch: JointExamples, totals: Totals) -> StepOutput:
        query_BX = self.clara.encode("query_reasoner", batch.questions).memory_BMD.flatten(1)
        rows_BN = batch.candidates_BN
        if rows_BN is None:
            rows_BN = self._bank.search(query_BX.detach(), self.n_candidates)
        mask_BN = rows_BN >= 0
        memory_BNMD = self._bank.gather(rows_BN)
        scores_BN = cosine_scores(query_BX, memory_BNMD)
        n_slots = batch.prompts.memory_index_S.shape[0] // (self.clara.n_memory_tokens * len(rows_BN))
        # All K slots are chosen, also where the generator reads fewer. Chosen alone, leave_own_out's first slot would
        # judge its own document, as the plain form of K = 1 does, and undo what the other batches teach.
        selection = straight_through_select(
            scores_BN, memory_BNMD, self.top_k, temperature=self.temperature, estimator=self.estimator, mask_BN=mask_BN
        )
        nll_P = self.clara.answer_nll(batch.prompts, selection.memory_BKX[:, :n_slots].flatten(0, 1))
        loss = mean_answer_loss(nll_P, totals.answer_tokens)
        if not any(batch.positives_B):
            return StepOutput(loss, {}, [])
        return StepOutput(loss, {}, document_recall(rows_BN.gather(1, selection.indices_BK), batch.positives_B))


def document_recall(rows_BK: Tensor, positives_B: Sequence[Sequence[Sequence[int]]]) -> list[float]:
    """Recall of documents that may be several rows: one is found where any of its rows is among the K."""
    documents = [{row: document[0] for document in positives for row in document} for positives in positives_B]
    found = [[first.get(row, row) for row in rows] for first, rows in zip(documents, rows_BK.tolist(), strict=True)]
    return recall_at_k(found, [set(first.values()) for first in documents])
