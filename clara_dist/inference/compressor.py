"""Documents to memories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from clara_dist.inference.buckets import length_buckets
from clara_dist.model.batch import TextBatch
from clara_dist.model.clara import ClaraModel
from clara_dist.store.fingerprint import Fingerprint


@dataclass(frozen=True)
class CompressedDocuments:
    """Memories of S documents, in the order in which the documents came.

    Attributes:
        memory_SMD: float16. A component beyond fp16's range (65,504) is infinite here; the store refuses it by doc_id.
        n_tokens_S: int32, tokens the compressor read, without the memory tokens.
        truncated_S: bool, whether the document was longer than ``doc_max_tokens``.
    """

    memory_SMD: np.ndarray
    n_tokens_S: np.ndarray
    truncated_S: np.ndarray


class DocumentCompressor:
    """Compresses documents in length-sorted batches.

    The compressor's LoRA is merged into the base, so a document costs one plain forward pass of the body: no LM head,
    no kept hidden states. ``clara`` can only compress afterwards.

    Args:
        clara: A model with a compressor.
        max_batch_tokens: Upper bound of the tokens of one forward pass, padding included.

    Attributes:
        fingerprint: Identity of what it writes; a store of another one must not be mixed with it.
    """

    def __init__(self, clara: ClaraModel, max_batch_tokens: int = 16_384) -> None:
        self.clara = clara
        self.max_batch_tokens = max_batch_tokens
        # Merging drops the adapter that the fingerprint hashes.
        self.fingerprint = Fingerprint(clara.fingerprint_fields())
        clara.merge("compressor")
        clara.eval()

    @torch.inference_mode()
    def compress(self, documents: Sequence[tuple[str, str]]) -> CompressedDocuments:
        """Compress ``(title, text)`` pairs."""
        tokenizer = self.clara.tokenizer
        encoded = tokenizer.encode_texts([tokenizer.document_text(title, text) for title, text in documents])
        shape = (len(encoded), self.clara.n_memory_tokens, self.clara.hidden_size)
        memory_SMD = np.empty(shape, dtype=np.float16)
        for rows in length_buckets([len(e.ids) for e in encoded], self.max_batch_tokens):
            batch = TextBatch.from_ids([encoded[row].ids for row in rows], tokenizer.pad_id).to(self.clara.device)
            memory_BMD = self.clara.encode("compressor", batch).memory_BMD
            memory_SMD[rows] = memory_BMD.to(torch.float16).cpu().numpy()
        return CompressedDocuments(
            memory_SMD,
            np.array([e.n_tokens for e in encoded], dtype=np.int32),
            np.array([e.truncated for e in encoded], dtype=bool),
        )
