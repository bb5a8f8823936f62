"""Token batches, and what the encoder makes of them.

`TextBatch` and `PromptBatch` are padded on the RIGHT. A causal model never looks right, so padding needs no attention
mask: every real position sees exactly its own text, and the attention kernel keeps its mask-free causal path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clara_dist.errors import TokenizationError


def pad_right(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ragged id lists -> ``(ids_BL, lengths_B)``, both int64, L the longest row."""
    lengths_B = torch.tensor([len(row) for row in rows])
    ids_BL = torch.full((len(rows), int(lengths_B.max())), pad_id)
    for i, row in enumerate(rows):
        ids_BL[i, : len(row)] = torch.tensor(row)
    return ids_BL, lengths_B


def _send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """To a GPU without waiting for what it still computes, which a copy from pageable memory does."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class TextBatch:
    """Input of the compressor or the query reasoner.

    Attributes:
        input_ids_BL: int64, right-padded; each row is the framed text followed by its M memory ids.
        lengths_B: int64, real length of each row, the memory ids included.
    """

    input_ids_BL: Tensor
    lengths_B: Tensor

    @classmethod
    def from_ids(cls, rows: Sequence[Sequence[int]], pad_id: int) -> TextBatch:
        return cls(*pad_right(rows, pad_id))

    def to(self, device: torch.device | str) -> TextBatch:
        return TextBatch(_send(self.input_ids_BL, device), _send(self.lengths_B, device))


@dataclass(frozen=True)
class Encoded:
    """What the encoder makes of a batch.

    Attributes:
        memory_BMD: Last hidden states, after the final norm, at the memory positions; not normalised.
        text_mean_BD: fp32 mean of the hidden states at the text positions (frame tokens included), if asked for.
    """

    memory_BMD: Tensor
    text_mean_BD: Tensor | None


@dataclass(frozen=True)
class PackedTexts:
    """`TextBatch` without padding: B texts end to end in one row, for attention kernels that take their borders.

    Attributes:
        input_ids_1L: int64, L the tokens of all texts.
        position_ids_1L: int64, from 0 in each text.
        borders: int32 ``[B + 1]``, where each text starts, and the end of the last one.
        longest: Tokens of the longest text.
    """

    input_ids_1L: Tensor
    position_ids_1L: Tensor
    borders: Tensor
    longest: int

    @classmethod
    def from_ids(cls, rows: Sequence[Sequence[int]]) -> PackedTexts:
        lengths_B = torch.tensor([len(row) for row in rows])
        borders = torch.nn.functional.pad(lengths_B.cumsum(0), (1, 0))
        ids_L = torch.tensor([token for row in rows for token in row])
        positions_L = torch.arange(len(ids_L)) - borders[:-1].repeat_interleave(lengths_B)
        return cls(ids_L[None], positions_L[None], borders.to(torch.int32), int(lengths_B.max()))

    def to(self, device: torch.device | str) -> PackedTexts:
        ids_1L, positions_1L, borders = (
            _send(t, device) for t in (self.input_ids_1L, self.position_ids_1L, self.borders)
        )
        return PackedTexts(ids_1L, positions_1L, borders, self.longest)


@dataclass(frozen=True)
class PromptBatch:
    """Input of the generator in training: prompts with their answers.

    Attributes:
        input_ids_BL: int64, right-padded.
        lengths_B: int64, real length of each row.
        memory_index_S: int64, flat positions (``row * L + column``) of the memory slots, row-major; S = sum over
            rows of k * M. They are overwritten by memories.
        predict_index_P: int64, flat positions whose hidden state predicts a supervised token.
        labels_P: int64, the supervised tokens (the answer and its EOS), row-major.
    """

    input_ids_BL: Tensor
    lengths_B: Tensor
    memory_index_S: Tensor
    predict_index_P: Tensor
    labels_P: Tensor

    @property
    def n_answer_tokens(self) -> int:
        return len(self.labels_P)

    @classmethod
    def from_ids(
        cls,
        prompts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        *,
        pad_id: int,
        memory_ids: Sequence[int],
        supervised_prompt_spans: Sequence[tuple[int, int]] | None = None,
    ) -> PromptBatch:
        """Lay prompts and answers end to end.

        Args:
            prompts: B prompts with their memory-slot ids.
            answers: B answers, EOS included.
            pad_id: Any id; what stands on padding is never read.
            memory_ids: The ids of memory tokens; wherever they stand in a PROMPT is a slot.
            supervised_prompt_spans: Per row, a ``[start, end)`` of the prompt that is supervised as well (language
                modelling of a passage in the base stage); ``(0, 0)`` for none.

        Raises:
            TokenizationError: A row has no answer token: its loss would be a mean over nothing.
        """
        empty = [i for i, answer in enumerate(answers) if not answer]
        if empty or len(prompts) != len(answers):
            raise TokenizationError("every prompt needs an answer token", got=f"none in rows {empty[:5]}")
        input_ids_BL, lengths_B = pad_right([[*p, *a] for p, a in zip(prompts, answers, strict=True)], pad_id)
        width = input_ids_BL.shape[1]
        slots = set(memory_ids)
        memory_index: list[int] = []
        predict_index: list[int] = []
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            start = i * width
            memory_index += [start + j for j, token in enumerate(prompt) if token in slots]
            if supervised_prompt_spans is not None:
                first, last = supervised_prompt_spans[i]
                predict_index += range(start + max(first - 1, 0), start + last - 1)
            predict_index += range(start + len(prompt) - 1, start + len(prompt) + len(answer) - 1)
        predict_index_P = torch.tensor(predict_index)
        # Position p predicts the token at p + 1 of the same row: spans never end at a row's end.
        labels_P = input_ids_BL.flatten()[predict_index_P + 1]
        return cls(input_ids_BL, lengths_B, torch.tensor(memory_index, dtype=torch.int64), predict_index_P, labels_P)

    def to(self, device: torch.device | str) -> PromptBatch:
        return PromptBatch(
            self.input_ids_BL.to(device),
            self.lengths_B.to(device),
            self.memory_index_S.to(device),
            self.predict_index_P.to(device),
            self.labels_P.to(device),
        )
