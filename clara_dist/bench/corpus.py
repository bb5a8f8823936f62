"""Made-up passages with the lengths of real ones."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

# Words of 700 Wikipedia passages as they are cut for retrieval: quantiles, measured (mean 95, standard deviation 45).
_QUANTILES = [(0.0, 8), (0.01, 11), (0.05, 18), (0.1, 26), (0.25, 54), (0.5, 109)]
_QUANTILES += [(0.75, 122), (0.9, 142), (0.95, 161), (0.99, 200), (1.0, 210)]
_ONSETS = ("b", "br", "d", "f", "g", "gr", "h", "k", "l", "m", "n", "p", "pl", "r", "s", "st", "t", "tr", "v", "w")
_CODAS = ("a", "al", "an", "e", "el", "en", "er", "i", "in", "is", "o", "on", "or", "u", "um", "us")
_N_WORDS = 20_000


def n_words(quantile: float) -> int:
    """Length of the passage below which a share ``quantile`` of all lie."""
    for (low, first), (high, last) in itertools.pairwise(_QUANTILES):
        if quantile <= high:
            return round(first + (last - first) * (quantile - low) / (high - low))
    return _QUANTILES[-1][1]


def make_passages(n: int, seed: int = 0) -> list[str]:
    """``n`` passages of pseudo-words, of which a few are as frequent as in a language."""
    generator = random.Random(seed)
    words = ["".join(_word(generator)) for _ in range(_N_WORDS)]
    # Zipf: the r-th word comes 1/r as often as the first.
    weights = [1 / rank for rank in range(1, _N_WORDS + 1)]
    return [" ".join(generator.choices(words, weights, k=n_words(generator.random()))) for _ in range(n)]


def write_corpus(path: Path, passages: list[str]) -> None:
    """The passages as jsonl."""
    lines = [json.dumps({"doc_id": f"p{i}", "text": text}) + "\n" for i, text in enumerate(passages)]
    path.write_text("".join(lines), encoding="utf-8")


def _word(generator: random.Random) -> list[str]:
    return [generator.choice(_ONSETS) + generator.choice(_CODAS) for _ in range(generator.randint(1, 4))]
