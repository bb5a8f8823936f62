"""The tensors of a batch that is being decoded: left-padded prompts, their mask, their KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

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
    """Rows that are decoded together, under the generator role. Rows leave, and those of other batches join.

    The role is entered per forward pass: between two of them the reasoner may run.
    """

    def __init__(self, clara: ClaraModel, padded: LeftPadded) -> None:
        self.clara = clara
        self.padded = padded
        self.mask_BL = padded.mask_BL.to(clara.device)
        self.lengths = padded.mask_BL.sum(1).tolist()
        self.cache = DynamicCache(config=clara.base.config)
        # Sliding windows would forget at different moments, so rows that read different lengths could not be joined.
        # The attention mask has the window all the same.
        self.cache.layers = [
            DynamicLayer() if type(layer) is DynamicSlidingWindowLayer else layer for layer in self.cache.layers
        ]

    @property
    def joinable(self) -> bool:
        """Whether other rows can join: all that is remembered is keys and values of tokens."""
        return all(type(layer) is DynamicLayer for layer in self.cache.layers)

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
        positions_B1 = torch.tensor(self.lengths, device=self.clara.device).unsqueeze(1)
        self.lengths = [length + 1 for length in self.lengths]
        return self._forward(self.clara.embed(ids_B1), positions_B1)

    def join(self, other: DecodingBatch) -> None:
        """Take the rows of another batch, below these. Shorter ones are padded on the left, where nothing looks."""
        width = max(self.mask_BL.shape[1], other.mask_BL.shape[1])
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.keys = torch.cat([_widened(mine.keys, width), _widened(theirs.keys, width)])
            mine.values = torch.cat([_widened(mine.values, width), _widened(theirs.values, width)])
        masks = [pad(mask, (width - mask.shape[1], 0)) for mask in (self.mask_BL, other.mask_BL)]
        self.mask_BL = torch.cat(masks)
        self.lengths += other.lengths

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows, their cache included, and columns that are padding in those that stay."""
        index = torch.tensor(rows, device=self.clara.device)
        self.lengths = [self.lengths[row] for row in rows]
        self.cache.batch_select_indices(index)
        n_padding = self.mask_BL.shape[1] - max(self.lengths) if self.joinable else 0
        self.mask_BL = self.mask_BL[index, n_padding:]
        if n_padding:
            for layer in self.cache.layers:
                layer.keys, layer.values = layer.keys[..., n_padding:, :], layer.values[..., n_padding:, :]

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


def _widened(states_BHLd: Tensor, width: int) -> Tensor:
    return pad(states_BHLd, (0, 0, width - states_BHLd.shape[2], 0))
