"""Tiny random base models and tokenizers of several families; built here, downloaded never."""

from __future__ import annotations

from functools import lru_cache

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

TEXT = [
    "The lighthouse at Cape Merrow was built in 1871.",
    "Rain gauges on the island are emptied at nine in the morning.",
    "Who built the lighthouse? Ada Tolliver, an engineer.",
    "You are a helpful assistant. Background: Question: Paraphrase the background. Answer:",
]
SPECIALS = ["<unk>", "<s>", "</s>", "<pad>"]
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


@lru_cache  # the Unigram trainer does not repeat itself
def _backend_json(scheme: str) -> str:
    return _train_backend(scheme).to_str()


def build_tokenizer(scheme: str) -> PreTrainedTokenizerFast:
    """``bytelevel``, ``metaspace-first``, ``metaspace-always``, ``metaspace-legacy`` (normalizer) or ``unigram``."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_backend_json(scheme)),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )


def _train_backend(scheme: str) -> Tokenizer:
    trainer: trainers.Trainer
    if scheme == "unigram":
        # Special pieces are part of a Unigram vocabulary, so its model can spell them by itself.
        backend = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=SPECIALS, unk_token="<unk>")
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        backend.decoder = decoders.Metaspace(prepend_scheme="first")
    else:
        backend = Tokenizer(models.BPE(unk_token="<unk>"))
        trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIALS, show_progress=False)
        if scheme == "bytelevel":
            trainer = trainers.BpeTrainer(
                vocab_size=400,
                special_tokens=SPECIALS,
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            )
            backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            backend.decoder = decoders.ByteLevel()
        elif scheme == "metaspace-legacy":
            backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
            backend.decoder = decoders.Metaspace()
        else:
            prepend = scheme.removeprefix("metaspace-")
            backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
            backend.decoder = decoders.Metaspace(prepend_scheme=prepend)
    backend.train_from_iterator(TEXT * 4, trainer)
    return backend


def build_base(family: str, vocab_size: int) -> PreTrainedModel:
    torch.manual_seed(1)
    shared = SIZES | {"vocab_size": vocab_size, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    wide = {"initializer_range": 0.2}
    if family == "mistral":
        return MistralForCausalLM(MistralConfig(num_key_value_heads=2, **shared, **wide))
    if family == "llama-tied":
        return LlamaForCausalLM(LlamaConfig(num_key_value_heads=4, tie_word_embeddings=True, **shared, **wide))
    if family == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(num_key_value_heads=2, head_dim=8, **shared, **wide))
    if family == "phi3":
        return Phi3ForCausalLM(Phi3Config(num_key_value_heads=2, **shared, **wide))
    if family == "gemma3":
        layers = ["sliding_attention", "full_attention"]
        gemma3 = Gemma3TextConfig(num_key_value_heads=2, head_dim=8, sliding_window=8, layer_types=layers, **shared)
        return Gemma3ForCausalLM(gemma3)
    if family == "gemma2":
        return Gemma2ForCausalLM(Gemma2Config(num_key_value_heads=2, head_dim=8, **shared, **wide))
    raise ValueError(family)


def added_token(content: str) -> AddedToken:
    """As transformers adds a special token that is given as a string."""
    return AddedToken(content, special=True, normalized=False)


def randomize_adapters(clara: torch.nn.Module, seed: int = 0) -> None:
    """LoRA B starts at zero, where every role is the base; tests want roles that differ."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in clara.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.3, generator=generator)
