"""The loss of known answers, given what the generator reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clara_dist.model.batch import PromptBatch
from clara_dist.model.clara import ClaraModel


class AnswerLoss:
    """Mean negative log-likelihood of an answer's tokens and its end, for each question on its own.

    Args:
        clara: A model with a generator.
    """

    def __init__(self, clara: ClaraModel) -> None:
        self.clara = clara
        clara.eval()

    def __call__(self, questions: Sequence[str], answers: Sequence[str], memory_BKMD: Tensor) -> Tensor:
        """Losses ``[B]`` in fp32; differentiable with respect to the memories of the K documents that are read.

        Raises:
            TokenizationError: A prompt with its answer is too long.
        """
        tokenizer = self.clara.tokenizer
        k = memory_BKMD.shape[1]
        prompts = [tokenizer.prompt_with_answer("answer", k, *pair) for pair in zip(questions, answers, strict=True)]
        batch = PromptBatch.from_ids(
            [prompt.prompt_ids for prompt in prompts],
            [prompt.answer_ids for prompt in prompts],
            pad_id=tokenizer.pad_id,
            memory_ids=tokenizer.memory_ids,
        ).to(self.clara.device)
        nll_P = self.clara.answer_nll(batch, memory_BKMD.flatten(0, 1))
        row_P = batch.predict_index_P // batch.input_ids_BL.shape[1]
        sum_B = torch.zeros(len(prompts), device=nll_P.device).index_add(0, row_P, nll_P)
        return sum_B / torch.bincount(row_P, minlength=len(prompts))
