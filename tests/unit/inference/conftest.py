"""A tiny random Llama with trained-looking adapters: every role gives different, non-trivial numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from clara_dist.config import ClaraConfig, LoraSettings
from clara_dist.model.clara import Clara

WORDS = [f"w{i}" for i in range(120)]
CHAT_TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% if m['role'] == 'assistant' %}</s>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base")
    vocabulary = ["<unk>", "<s>", "</s>", "[", "]", "system", "user", "assistant", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    hf = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", chat_template=CHAT_TEMPLATE
    )
    hf.save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def model_dir(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "clara"
    config = ClaraConfig(
        base_model=str(base_dir),
        n_memory_tokens=3,
        doc_max_tokens=24,
        lora=LoraSettings(r=4),
        document_template="{title} {text}",
        system_prompt="",
    )
    clara = Clara.from_base(config, seed=1)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in clara.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    clara.save_pretrained(path)
    return path


@pytest.fixture
def clara(model_dir: Path) -> Clara:
    """A fresh model per test: merging changes it."""
    return Clara.from_pretrained(model_dir)


@pytest.fixture
def documents() -> list[tuple[str, str]]:
    """Forty documents of 1 to 30 words; some are longer than ``doc_max_tokens``."""
    random = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 31, (40,), generator=random).tolist()
    picks = [torch.randint(0, len(WORDS), (n,), generator=random).tolist() for n in lengths]
    return [(WORDS[i], " ".join(WORDS[j] for j in pick)) for i, pick in enumerate(picks)]
