"""The naive path: what the published code does to compress, as the baseline of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clara_dist.config.model import Role
from clara_dist.model.clara import ClaraModel

BATCH_SIZE = 8


@torch.inference_mode()
def compress_naively(clara: ClaraModel, texts: Sequence[str]) -> Tensor:
    """Memories ``[S, M, D]`` in fp32, at full cost.

    Batches of 8 in the order of the corpus, each padded on the left to the longest text that there could be, the LM
    head over every position, all hidden states kept, LoRA beside the weights.
    """
    length = clara.config.doc_max_tokens + 3 + clara.n_memory_tokens
    memories = []
    for start in range(0, len(texts), BATCH_SIZE):
        rows = [text.ids for text in clara.tokenizer.encode_texts(texts[start : start + BATCH_SIZE])]
        memories.append(encode_naively(clara, "compressor", rows, length).float().cpu())
    return torch.cat(memories)


def encode_naively(clara: ClaraModel, role: Role, rows: Sequence[Sequence[int]], length: int) -> Tensor:
    """Memories ``[B, M, D]`` of encoder inputs that are padded on the left to ``length``, with gradient."""
    ids_BL = torch.tensor([[clara.tokenizer.pad_id] * (length - len(row)) + list(row) for row in rows])
    mask_BL = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    with clara.role(role):
        out = clara.base(
            inputs_embeds=clara.embed(ids_BL.to(clara.device)),
            attention_mask=mask_BL.to(clara.device),
            output_hidden_states=True,
            use_cache=False,
        )
    return out.hidden_states[-1][:, -clara.n_memory_tokens :]
