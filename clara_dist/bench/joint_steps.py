"""The joint step without a store, twice: as the published code does it, and without its waste. Baselines."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clara_dist.bench.naive import BATCH_SIZE, encode_naively
from clara_dist.core import cosine_scores, mean_answer_loss, selection_matrix, straight_through_select
from clara_dist.model import ClaraModel, TextBatch
from clara_dist.training.batches import JointExamples, Totals
from clara_dist.training.steps import StepOutput

# What the published code pads and cuts questions to, besides frame and memory tokens.
_QUESTION_TOKENS = 1024
_LEAN_BATCH = 16


class NaiveJointStep(nn.Module):
    """What the published code computes in a step (arXiv 2511.18659, its stage 2 of the code), as far as it has a price.

    All B x N candidates are compressed again, padded to the longest document that there could be; the questions are
    padded to 1,024 tokens; each of these passes keeps all hidden states and runs the LM head over every position, and
    so does the generator, whose loss then ignores all but the answer; the choice is a product with a [B, K, N] matrix.

    Two things are cheaper than there: documents run 8 at a time, so that their logits (32,000 numbers a position) stay
    in bounds, and prompts are padded to the longest of the batch.

    Args:
        clara: The model.
        ids: Encoder input of every document of the store, by its row.
        top_k: K.
        temperature: tau.
        rounded: Round memories to float16, as the store does: the same function as the step that reads it.
    """

    def __init__(
        self, clara: ClaraModel, ids: Sequence[list[int]], top_k: int, temperature: float, *, rounded: bool
    ) -> None:
        super().__init__()
        self.clara = clara
        self.top_k = top_k
        self.temperature = temperature
        self.rounded = rounded
        self._ids = ids

    def forward(self, batch: JointExamples, totals: Totals) -> StepOutput:
        clara, rows_BN = self.clara, _candidates(batch)
        frame = 3 + clara.n_memory_tokens
        questions = zip(batch.questions.input_ids_BL.tolist(), batch.questions.lengths_B.tolist(), strict=True)
        query_BMD = encode_naively(
            clara, "query_reasoner", [ids[:length] for ids, length in questions], _QUESTION_TOKENS + frame
        )
        ids = [self._ids[row] for row in rows_BN.flatten().tolist()]
        with torch.no_grad():
            memory = [
                encode_naively(
                    clara, "compressor", ids[start : start + BATCH_SIZE], clara.config.doc_max_tokens + frame
                )
                for start in range(0, len(ids), BATCH_SIZE)
            ]
        memory_BNMD = _as_stored(torch.cat(memory), self.rounded).unflatten(0, rows_BN.shape)
        scores_BN = cosine_scores(query_BMD, memory_BNMD)
        choice_BKN = selection_matrix(scores_BN, self.top_k, temperature=self.temperature)
        memory_BKX = choice_BKN @ memory_BNMD.flatten(2)
        return StepOutput(
            self._loss(batch, memory_BKX.unflatten(2, memory_BNMD.shape[2:])) / totals.answer_tokens, {}, []
        )

    def _loss(self, batch: JointExamples, memory_BKMD: Tensor) -> Tensor:
        """Cross-entropy over all positions of the prompts, of which only answers count."""
        clara, prompts = self.clara, batch.prompts
        length = prompts.input_ids_BL.shape[1]
        mask_BL = (torch.arange(length, device=clara.device) < prompts.lengths_B[:, None]).long()
        with clara.role("generator"):
            out = clara.base(
                inputs_embeds=clara.splice(prompts.input_ids_BL, prompts.memory_index_S, memory_BKMD.flatten(0, 1)),
                attention_mask=mask_BL,
                output_hidden_states=True,
                use_cache=False,
            )
        labels_BL = torch.full_like(prompts.input_ids_BL, -100)
        labels_BL.view(-1)[prompts.predict_index_P + 1] = prompts.labels_P
        # Rows of the head beyond the tokenizer's ids stand for no token.
        logits_BLV = out.logits[..., : clara.tokenizer.first_memory_id].float()
        return F.cross_entropy(logits_BLV[:, :-1].flatten(0, 1), labels_BL[:, 1:].flatten(), reduction="sum")


class LeanJointStep(nn.Module):
    """Our step, but for the memories: the distinct candidates are compressed again, in batches of similar length.

    The compressor is frozen and runs without gradient, LM head or kept states; its LoRA stays beside the weights, which
    the other roles need as they are. Arguments as of `NaiveJointStep`.
    """

    def __init__(
        self, clara: ClaraModel, ids: Sequence[list[int]], top_k: int, temperature: float, *, rounded: bool
    ) -> None:
        super().__init__()
        self.clara = clara
        self.top_k = top_k
        self.temperature = temperature
        self.rounded = rounded
        self._ids = ids

    def forward(self, batch: JointExamples, totals: Totals) -> StepOutput:
        query_BX = self.clara.encode("query_reasoner", batch.questions).memory_BMD.flatten(1)
        distinct_S, place_BN = _candidates(batch).unique(return_inverse=True)
        memory_BNMD = _as_stored(self._compress([self._ids[row] for row in distinct_S.tolist()]), self.rounded)[
            place_BN
        ]
        scores_BN = cosine_scores(query_BX, memory_BNMD)
        selection = straight_through_select(scores_BN, memory_BNMD, self.top_k, temperature=self.temperature)
        nll_P = self.clara.answer_nll(batch.prompts, selection.memory_BKX.flatten(0, 1))
        return StepOutput(mean_answer_loss(nll_P, totals.answer_tokens), {}, [])

    @torch.no_grad()
    def _compress(self, ids: Sequence[Sequence[int]]) -> Tensor:
        clara = self.clara
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        memory_SMD = torch.empty(len(ids), clara.n_memory_tokens, clara.hidden_size, device=clara.device)
        for start in range(0, len(ids), _LEAN_BATCH):
            rows = order[start : start + _LEAN_BATCH]
            texts = TextBatch.from_ids([ids[row] for row in rows], clara.tokenizer.pad_id).to(clara.device)
            memory_SMD[rows] = clara.encode("compressor", texts).memory_BMD.float()
        return memory_SMD


def _candidates(batch: JointExamples) -> Tensor:
    assert batch.candidates_BN is not None, "the benchmark's questions have lists of candidates"
    return batch.candidates_BN


def _as_stored(memory: Tensor, rounded: bool) -> Tensor:
    return memory.half().float() if rounded else memory.float()
