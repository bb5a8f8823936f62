"""The tensors of a batch that is being decoded: left-padded prompts, their mask, their KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from clara_dist.model.clara import ClaraModel


@dataclass(frozen=True)
class LeftPadded:
    """Prompts that all end in the last column, so that the next token of every row stands in one new column.

    Attributes:
        ids_BL: int64.
        mask_BL: bool, True on real tokens.
        memory_index_S: int64, flat positions of memory slots, row-major.
    """

    ids_BL: Tensor
    mask_BL: Tensor
    memory_index_S: Tensor


def left_padded(prompts: Sequence[Sequence[int]], memory_ids: Sequence[int], pad_id: int) -> LeftPadded:
    """Lay out prompts; wherever a memory id stands is a slot."""
    width = max(len(prompt) for prompt in prompts)
    ids_BL = torch.tensor([[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    starts_B = torch.tensor([width - len(prompt) for prompt in prompts])
    mask_BL = torch.arange(width) >= starts_B.unsqueeze(1)
    slots_BL = torch.isin(ids_BL, torch.tensor(sorted(set(memory_ids)))) & mask_BL
    return LeftPadded(ids_BL, mask_BL, slots_BL.flatten().nonzero().squeeze(1))


class DecodingBatch:
    """Rows that are decoded together, under the generator role.

    The role is entered per forward pass: a consumer of a stream may run the reasoner between two steps.
    """

    def __init__(self, clara: ClaraModel, padded: LeftPadded) -> None:
        self.clara = clara
        self.padded = padded
        self.mask_BL = padded.mask_BL.to(clara.device)
        # The configuration matters: sliding-window layers keep their window only.
        self.cache = DynamicCache(config=clara.base.config)

    def prefill(self, memory_TMD: Tensor | None) -> Tensor:
        """Read the prompts; logits ``[B, V]`` of the first answer token."""
        device = self.clara.device
        embeds_BLD = self.clara.splice(
            self.padded.ids_BL.to(device),
            self.padded.memory_index_S.to(device),
            None if memory_TMD is None else memory_TMD.to(device),
        )
        # Padding stands at position 0 and is masked; rotary positions count real tokens.
        positions_BL = (self.mask_BL.long().cumsum(1) - 1).clamp(min=0)
        return self._forward(embeds_BLD, positions_BL)

    def step(self, token_ids: Sequence[int]) -> Tensor:
        """Append one token per row; logits ``[B, V]`` of the next."""
        ids_B1 = torch.tensor(token_ids, device=self.clara.device).unsqueeze(1)
        self.mask_BL = torch.cat([self.mask_BL, torch.ones_like(ids_B1, dtype=torch.bool)], dim=1)
        return self._forward(self.clara.embed(ids_B1), self.mask_BL.sum(1, keepdim=True) - 1)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows, their cache included."""
        index = torch.tensor(rows, device=self.clara.device)
        self.mask_BL = self.mask_BL[index]
        self.cache.batch_select_indices(index)

    def _forward(self, embeds_BLD: Tensor, positions_BL: Tensor) -> Tensor:
        with self.clara.role("generator"):
            hidden_BLD = self.clara.base.base_model(
                inputs_embeds=embeds_BLD,
                attention_mask=self.mask_BL.long(),
                position_ids=positions_BL,
                past_key_values=self.cache,
                use_cache=True,
            ).last_hidden_state
        return self.clara.logits(hidden_BLD[:, -1])
