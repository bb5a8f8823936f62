"""Random models to measure with: what a forward pass costs does not depend on what the weights are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from clara_dist.config.model import ClaraConfig, Dtype
from clara_dist.errors import ConfigError
from clara_dist.model.base import DTYPES
from clara_dist.model.clara import ClaraModel

_SIZES = {
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "small": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8},
    # Mistral 7B's matrices.
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}
_VOCABULARY = 32_000


def write_random_model(folder: Path, shape: str, texts: Sequence[str], *, dtype: Dtype, device: str) -> Path:
    """A model directory (M 16, 256 document tokens, LoRA rank 16 on all linear layers) on a random base beside it.

    Args:
        folder: Takes ``base`` and ``model``; the weights of ``7b`` are 14.5 GB.
        shape: ``tiny``, ``small`` (D 256, 4 layers, V 32,000) or ``7b``.
        texts: What the tokenizer is trained on.
        dtype: Of the base's weights.
        device: Where they are drawn; a CPU takes minutes for ``7b``.

    Raises:
        ConfigError: The shape is not known.
    """
    if shape not in _SIZES:
        raise ConfigError("this shape is not known", got=shape, expected=", ".join(_SIZES))
    tokenizer = _train_tokenizer(texts)
    config = LlamaConfig(
        **_SIZES[shape], vocab_size=_VOCABULARY, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False
    )
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        base = LlamaForCausalLM(config).to(DTYPES[dtype])
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    del base
    clara = ClaraModel.from_base(ClaraConfig(base_model=str(folder / "base")), dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in clara.named_parameters():
        if "lora_B" in name:  # zero in a new model, where merging would change nothing
            parameter.data.normal_(0, 0.02, generator=generator)
    clara.save_pretrained(folder / "model")
    return folder / "model"


def _train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["<unk>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=8000, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
