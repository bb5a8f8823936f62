"""Base LLMs as the families ship them, tiny and random: architecture, kind of tokenizer, special tokens, chat template.

The templates are written for these tests in the structure of each family's own: system role or none, what is trimmed,
what opens and closes a turn, what a thinking switch does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

from tiny_models import TEXT

LETTERS = "<>[]/|:abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789\n"
N_SPARE_ROWS = 13  # rows that the base's matrices have behind the tokenizer's last id


@dataclass(frozen=True)
class Family:
    """How to build one.

    Attributes:
        model_type: Of transformers.
        settings: Of its configuration, beyond the shared sizes.
        scheme: Kind of tokenizer.
        specials: Special tokens, in order of id; `bos`, `eos` and `pad` name some of them.
        template: Chat template; None: the base has none.
        stops: Tokens that end an answer besides `eos`, by the generation configuration.
        rendered: The prompt of ``system``, ``user`` as one string, written by hand.
        closing: What stands behind an answer, up to the token that closes it.
    """

    model_type: str
    scheme: str
    specials: tuple[str, ...]
    bos: str | None
    eos: str
    pad: str | None
    template: str | None
    rendered: Callable[[str, str], str]
    closing: str
    opening: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    stops: tuple[str, ...] = ()
    plain_added: tuple[str, ...] = ()


FAMILIES: dict[str, Family] = {
    "mistral": Family(
        model_type="mistral",
        scheme="metaspace-legacy",
        specials=("<unk>", "<s>", "</s>"),
        bos="<s>",
        eos="</s>",
        pad=None,
        template=(
            "{{ bos_token }}{% for m in messages %}"
            "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate!') }}{% endif %}"
            "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
            "{% elif m['role'] == 'assistant' %}{{ m['content'] }}{{ eos_token }}"
            "{% else %}{{ raise_exception('user and assistant only') }}{% endif %}{% endfor %}"
        ),
        rendered=lambda system, user: f"<s>[INST] {system}\n{user} [/INST]",
        closing="</s>",
        settings={"num_key_value_heads": 2, "sliding_window": 16},
    ),
    "llama3": Family(
        model_type="llama",
        scheme="bytelevel",
        specials=("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        pad=None,
        template=(
            "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
            "{% if m['role'] == 'system' %}Today Date: {{ strftime_now('%d %b %Y') }}\n\n{% endif %}"
            "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
            "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
        ),
        rendered=lambda system, user: (
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
            f"Today Date: 26 Jul 2024\n\n{system}<|eot_id|>"
            f"<|start_header_id|>user<|end_header_id|>\n\n{user}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        ),
        closing="<|eot_id|>",
        settings={
            "num_key_value_heads": 2,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        stops=("<|eot_id|>",),
    ),
    "qwen3": Family(
        model_type="qwen3",
        scheme="bytelevel",
        specials=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        bos=None,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        template=(
            "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n"
            "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
            "{% endif %}"
        ),
        rendered=lambda system, user: (
            f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n"
            "<|im_start|>assistant\n<think>\n\n</think>\n\n"
        ),
        closing="<|im_end|>",
        settings={"num_key_value_heads": 2, "head_dim": 8},
        stops=("<|endoftext|>",),
        plain_added=("<think>", "</think>"),
    ),
    "phi3": Family(
        model_type="phi3",
        scheme="metaspace-first",
        specials=("<unk>", "<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        bos="<s>",
        eos="<|endoftext|>",
        pad="<|endoftext|>",
        template=(
            "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
        ),
        rendered=lambda system, user: f"<|system|>\n{system}<|end|>\n<|user|>\n{user}<|end|>\n<|assistant|>\n",
        closing="<|end|>",
        settings={"num_key_value_heads": 2},
        stops=("<|end|>",),
    ),
    "gemma2": Family(
        model_type="gemma2",
        scheme="gemma",
        specials=("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
        template=(
            "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
            "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
            "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
            "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
        ),
        rendered=lambda system, user: (
            f"<bos><start_of_turn>user\n{system}\n{user}<end_of_turn>\n<start_of_turn>model\n"
        ),
        closing="<end_of_turn>",
        settings={"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
        stops=("<end_of_turn>",),
    ),
    "gemma3": Family(
        model_type="gemma3_text",
        scheme="gemma",
        specials=("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
        # Has a system role of sorts: it is put before the user's words.
        template=(
            "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
            "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
            "{% for m in rest %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
            "{{ first if loop.first else '' }}{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
            "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
        ),
        rendered=lambda system, user: (
            f"<bos><start_of_turn>user\n{system}\n\n{user}<end_of_turn>\n<start_of_turn>model\n"
        ),
        closing="<end_of_turn>",
        settings={
            "num_key_value_heads": 2,
            "head_dim": 8,
            "sliding_window": 8,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "full_attention"],  # the default has its first full layer at number 6
        },
        stops=("<end_of_turn>",),
    ),
    "gpt2": Family(  # tied embeddings, absolute positions, transposed weights, one token for everything, no template
        model_type="gpt2",
        scheme="bytelevel",
        specials=("<|endoftext|>",),
        bos="<|endoftext|>",
        eos="<|endoftext|>",
        pad=None,
        template=None,
        rendered=lambda system, user: f"<|endoftext|>{system}\n\n{user}\n\nAnswer:",
        opening=" ",
        closing="<|endoftext|>",
        settings={"n_positions": 512, "tie_word_embeddings": True},
    ),
}


def family_tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """The family's tokenizer with its chat template."""
    backend = Tokenizer(models.BPE(unk_token="<unk>" if "<unk>" in family.specials else None))
    alphabet: list[str] = []
    if family.scheme == "bytelevel":
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    elif family.scheme == "gemma":
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    else:
        # Both are trained on words, as the real ones: no token holds two of them.
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        backend.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(family.specials), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([*TEXT, LETTERS] * 4, trainer)
    if family.scheme == "metaspace-legacy":
        backend.pre_tokenizer = None
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in family.plain_added])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=family.bos,
        eos_token=family.eos,
        pad_token=family.pad,
        unk_token="<unk>" if "<unk>" in family.specials else None,
    )
    if family.model_type == "phi3":  # its turn tokens swallow the white space behind them
        stripping = [AddedToken(token, special=True, normalized=False, rstrip=True) for token in family.specials[3:]]
        tokenizer.add_special_tokens({"additional_special_tokens": stripping})
    tokenizer.chat_template = family.template
    return tokenizer


def write_base(name: str, path: Path) -> Path:
    """Save a family's base LLM, as it would come from its makers."""
    family = FAMILIES[name]
    tokenizer = family_tokenizer(family)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    if family.model_type != "gpt2":
        sizes |= {"intermediate_size": 48, "max_position_embeddings": 512}
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CONFIG_MAPPING[family.model_type](
        vocab_size=len(tokenizer) + N_SPARE_ROWS, initializer_range=0.2, **sizes, **ids, **family.settings
    )
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = [
        tokenizer.eos_token_id,
        *tokenizer.convert_tokens_to_ids(list(family.stops)),
    ]
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
