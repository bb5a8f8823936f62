"""From logits to the next token of each row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clara_dist.inference.engine import Sampling

# Below it softmax has all its mass on the best token; much further below, dividing by it overflows.
_LOWEST_TEMPERATURE = 1e-6


class TokenSampler:
    """Draws one answer's tokens. Its random numbers are its own: a seeded answer does not depend on its neighbours."""

    def __init__(self, sampling: Sampling) -> None:
        self.temperature = sampling.temperature
        self.top_p = sampling.top_p
        # On the CPU, so that a seed means the same on every device.
        self._random = torch.Generator()
        if sampling.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(sampling.seed)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    def draw(self, logits_V: Tensor) -> int:
        """A token of ``softmax(logits / temperature)``, cut to its nucleus (Holtzman et al., 2020)."""
        logits_V = logits_V.float().cpu()
        probabilities_V = ((logits_V - logits_V.max()) / max(self.temperature, _LOWEST_TEMPERATURE)).softmax(-1)
        if self.top_p < 1:
            sorted_V, order_V = probabilities_V.sort(descending=True, stable=True)
            # A token stays if those before it do not reach top_p: the best one always does.
            sorted_V[sorted_V.cumsum(-1) - sorted_V >= self.top_p] = 0.0
            return int(order_V[torch.multinomial(sorted_V, 1, generator=self._random)])
        return int(torch.multinomial(probabilities_V, 1, generator=self._random))


def next_tokens(logits_BV: Tensor, samplers: Sequence[TokenSampler]) -> list[int]:
    """The next token of each row."""
    tokens: list[int] = logits_BV.argmax(-1).tolist()
    for row, sampler in enumerate(samplers):
        if not sampler.is_greedy:
            tokens[row] = sampler.draw(logits_BV[row])
    return tokens
