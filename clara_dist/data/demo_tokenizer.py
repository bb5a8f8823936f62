"""The demo's base LLM before any training: a tiny Llama configuration and a WordPiece tokenizer of the word lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from clara_dist.data.demo_language import CODAS, ONSETS, words

PAD, UNK, BOS, EOS, ANSWER = SPECIALS = ("[PAD]", "[UNK]", "[BOS]", "[EOS]", "[ANSWER]")

# What the prompts around documents and questions say (see clara_dist.model.prompts).
_PROMPT_WORDS = ("background", "question", "paraphrase", "the", ":", ".")

# Rendered by transformers, as for any other base model.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}[ANSWER]{{ message['content'] }}{{ eos_token }}"
    "{% else %}{{ message['content'] }}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}[ANSWER]{% endif %}"
)


def vocabulary() -> list[str]:
    """The tokenizer's entries in the order of their ids."""
    whole = sorted({*words(), *_PROMPT_WORDS, *ONSETS})
    return [*SPECIALS, *whole, *(f"##{coda}" for coda in CODAS)]


def make_tokenizer() -> Tokenizer:
    """Lower-cased words and name pieces; every sentence of the world and of the prompts is free of ``[UNK]``."""
    tokens = vocabulary()
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer


def write_base(directory: str | Path, hidden_size: int) -> None:
    """Write ``config.json`` and the tokenizer's files, loadable by transformers' Auto classes."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    make_tokenizer().save(str(directory / "tokenizer.json"))
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": PAD,
            "unk_token": UNK,
            "bos_token": BOS,
            "eos_token": EOS,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    ids = {token: i for i, token in enumerate(SPECIALS)}
    _write_json(
        directory / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": len(vocabulary()),
            "hidden_size": hidden_size,
            "intermediate_size": 2 * hidden_size,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
            # Hidden matrices of 0.09 (1 / sqrt(D)) learn to read as fast, but on some seeds their memories hardly tell
            # twin relations apart: Recall@1 .62 where 0.02 reaches .99.
            "initializer_range": 0.02,
            "pad_token_id": ids[PAD],
            "bos_token_id": ids[BOS],
            "eos_token_id": ids[EOS],
        },
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
