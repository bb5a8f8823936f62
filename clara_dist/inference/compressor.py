"""Documents to memories."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clara_dist.inference.buckets import length_buckets, packed_groups
from clara_dist.model.batch import PackedTexts, TextBatch
from clara_dist.model.clara import ClaraModel
from clara_dist.model.tokens import EncodedText
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
    """Compresses documents: first all of them to tokens, then the tokens to memories.

    The compressor's LoRA is merged into the base, so a document costs one plain forward pass of the body: no LM head,
    no kept hidden states. Texts run end to end without padding where the attention implementation can do that (flash
    attention), else in batches of similar length. ``clara`` can only compress afterwards.

    `tokenize` and `encode` may run in two threads at the same time, each of them in one at a time.

    Args:
        clara: A model with a compressor.
        max_batch_tokens: Upper bound of the tokens of one forward pass, padding included; None: 16,384 on a GPU, which
            wants large matrices, and 1,024 on a CPU, which wants activations that stay in its cache (at D 256 a third
            faster than 16,384) and pads less.
        packed: Run texts end to end; None asks the model, see `ClaraModel.packs`.
        merge: Without it the model stays as it is, and a document costs the LoRA on top.

    Attributes:
        fingerprint: Identity of what it writes; a store of another one must not be mixed with it.
    """

    def __init__(
        self, clara: ClaraModel, max_batch_tokens: int | None = None, *, packed: bool | None = None, merge: bool = True
    ) -> None:
        self.clara = clara
        self.max_batch_tokens = max_batch_tokens or (1024 if clara.device.type == "cpu" else 16_384)
        self.packed = clara.packs if packed is None else packed
        # Merging drops the adapter that the fingerprint hashes.
        self.fingerprint = Fingerprint(clara.fingerprint_fields())
        if merge:
            clara.merge("compressor")
        clara.eval()

    def compress(self, documents: Sequence[tuple[str, str]]) -> CompressedDocuments:
        """Compress ``(title, text)`` pairs."""
        encoded = self.tokenize(documents)
        shape = (len(encoded), self.clara.n_memory_tokens, self.clara.hidden_size)
        memory_SMD = np.empty(shape, dtype=np.float16)
        self.encode(encoded, memory_SMD)
        return CompressedDocuments(
            memory_SMD,
            np.array([e.n_tokens for e in encoded], dtype=np.int32),
            np.array([e.truncated for e in encoded], dtype=bool),
        )

    def tokenize(self, documents: Sequence[tuple[str, str]]) -> list[EncodedText]:
        """Encoder inputs of ``(title, text)`` pairs."""
        tokenizer = self.clara.tokenizer
        return tokenizer.encode_texts([tokenizer.document_text(title, text) for title, text in documents])

    @torch.inference_mode()
    def encode(self, encoded: Sequence[EncodedText], memory_SMD: np.ndarray) -> int:
        """Write the memories of S texts into ``memory_SMD`` (float16, writable); returns the number of batches."""
        batches = self.batches(encoded)
        out_SMD = torch.from_numpy(memory_SMD)
        arriving: tuple[list[int], Callable[[], Tensor]] | None = None
        for rows in batches:
            memory_BMD = self.forward([encoded[row].ids for row in rows])
            started = rows, _start_transfer(memory_BMD)
            # One batch behind: a GPU has its next batch before the memories of the last one are waited for.
            if arriving is not None:
                out_SMD[arriving[0]] = arriving[1]()
            arriving = started
        if arriving is not None:
            out_SMD[arriving[0]] = arriving[1]()
        return len(batches)

    def batches(self, encoded: Sequence[EncodedText]) -> list[list[int]]:
        """Which texts run together; every one occurs once."""
        lengths = [len(e.ids) for e in encoded]
        return (packed_groups if self.packed else length_buckets)(lengths, self.max_batch_tokens)

    def forward(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Memories ``[B, M, D]`` of encoder inputs, on the model's device and in its dtype."""
        if self.packed:
            return self.clara.encode_packed("compressor", PackedTexts.from_ids(rows).to(self.clara.device))
        batch = TextBatch.from_ids(rows, self.clara.tokenizer.pad_id).to(self.clara.device)
        return self.clara.encode("compressor", batch).memory_BMD


def _start_transfer(memory_BMD: Tensor) -> Callable[[], Tensor]:
    """Send memories to the CPU as float16 without waiting; the result waits for them."""
    half_BMD = memory_BMD.to(torch.float16)
    if half_BMD.device.type != "cuda":
        return half_BMD.cpu
    # Only page-locked memory is written while the CPU goes on; torch keeps such blocks for the next batch.
    host_BMD = torch.empty(half_BMD.shape, dtype=torch.float16, pin_memory=True)
    host_BMD.copy_(half_BMD, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def wait() -> Tensor:
        arrived.synchronize()
        return host_BMD

    return wait
