"""The sizes of a decoder LLM, and what a forward pass of its body costs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clara_dist.errors import ConfigError


@dataclass(frozen=True)
class ModelShape:
    """A decoder LLM by its matrices.

    Attributes:
        hidden_size: D.
        body_parameters: Weights that every token is multiplied with: all layers, without embeddings and LM head.
        attention_size: Layers * heads * head size, for the part that grows with the square of the length; 0 if it is
            not known (it is 0.5 % of a 7B model's work at 272 tokens).
        embedding_parameters: Input embeddings and LM head; they only take memory here.
    """

    hidden_size: int
    body_parameters: float
    attention_size: float = 0
    embedding_parameters: float = 0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """From a base model's ``config.json``: attention with grouped heads and a gated MLP of three matrices.

        Raises:
            ConfigError: A size is missing, or the layers are of another build (experts).
        """
        config = config.get("text_config", config)
        if config.get("num_local_experts") or config.get("num_experts"):
            raise ConfigError("a model of experts cannot be planned by its config", hint="name --parameters")
        try:
            d, layers, f = (int(config[key]) for key in ("hidden_size", "num_hidden_layers", "intermediate_size"))
            heads, vocab = int(config["num_attention_heads"]), int(config["vocab_size"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                "the base model's config lacks a size", got=error, hint="name --parameters and --hidden-size"
            ) from error
        kv_heads = config.get("num_key_value_heads") or heads
        head_size = config.get("head_dim") or d // heads
        attention = 2 * d * heads * head_size + 2 * d * kv_heads * head_size
        n_matrices = 1 if config.get("tie_word_embeddings") else 2
        return cls(d, layers * (attention + 3 * d * f), layers * heads * head_size, n_matrices * vocab * d)

    @classmethod
    def from_file(cls, path: str | Path) -> ModelShape:
        """`from_config` of a ``config.json``, or of the directory that holds it.

        Raises:
            ConfigError: It cannot be read.
        """
        file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
        try:
            return cls.from_config(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read the base model's config {file}", got=error) from error

    def flops(self, n_tokens: float) -> float:
        """Floating-point operations of one text of T tokens, memory tokens included.

        ``2 * body_parameters * T`` for the matrices, and ``2 * T^2 * attention_size`` for causal attention (scores and
        weighted sum are ``4 * T^2 * attention_size``, of which the mask leaves half). No LM head: it is not run.
        """
        return 2 * self.body_parameters * n_tokens + 2 * n_tokens**2 * self.attention_size
