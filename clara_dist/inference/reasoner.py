"""Questions to query vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from clara_dist.config.model import Role
from clara_dist.inference.buckets import length_buckets
from clara_dist.model.batch import TextBatch
from clara_dist.model.clara import ClaraModel
from clara_dist.model.files import load_role


class Reasoner:
    """Turns questions into vectors of the memory space.

    Args:
        clara: A model with a query reasoner; the same instance may serve the generator.
        max_batch_tokens: Upper bound of the tokens of one forward pass, padding included.
        role: Whose adapter reads the questions; the compressor is what the joint stage's reasoner starts as.
    """

    def __init__(self, clara: ClaraModel, max_batch_tokens: int = 16_384, *, role: Role = "query_reasoner") -> None:
        self.clara = clara
        self.max_batch_tokens = max_batch_tokens
        self._role: Role = role
        clara.eval()

    @torch.inference_mode()
    def query(self, questions: Sequence[str]) -> np.ndarray:
        """Query vectors.

        Returns:
            float32 [B, M * D], in the order of the questions, not normalised.

        Raises:
            TokenizationError: A question is longer than the reasoner reads.
        """
        tokenizer = self.clara.tokenizer
        encoded = tokenizer.encode_questions(questions)
        query_BX = np.empty((len(encoded), self.clara.n_memory_tokens * self.clara.hidden_size), dtype=np.float32)
        for rows in length_buckets([len(e.ids) for e in encoded], self.max_batch_tokens):
            batch = TextBatch.from_ids([encoded[row].ids for row in rows], tokenizer.pad_id).to(self.clara.device)
            memory_BMD = self.clara.encode(self._role, batch).memory_BMD
            query_BX[rows] = memory_BMD.flatten(1).float().cpu().numpy()
        return query_BX


class GuestReasoner:
    """A reasoner with weights of another model of the same base and compressor.

    They take the place of the model's own while questions are read, so that many reasoners share one base LLM.

    Args:
        clara: The model; its query reasoner must not be merged.
        weights: The other model's, as `clara_dist.model.files.read_role` gives them.
    """

    def __init__(self, clara: ClaraModel, weights: Mapping[str, Tensor]) -> None:
        self._reasoner = Reasoner(clara)
        self._weights = dict(weights)

    def query(self, questions: Sequence[str]) -> np.ndarray:
        """As `Reasoner.query`.

        Raises:
            TokenizationError: A question is longer than the reasoner reads.
            ModelError: The weights do not fit the model, which keeps its own.
        """
        clara = self._reasoner.clara
        own = {name: tensor.clone() for name, tensor in clara.role_state("query_reasoner").items()}
        load_role(clara, "query_reasoner", self._weights)
        try:
            return self._reasoner.query(questions)
        finally:
            load_role(clara, "query_reasoner", own)
