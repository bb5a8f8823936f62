"""Sizes of a model on the meta device against those of a real one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import MistralConfig, PretrainedConfig

from clara_dist.config import ClaraConfig, LoraSettings
from clara_dist.errors import ModelError
from clara_dist.model import ClaraModel
from clara_dist.model.base import load_tokenizer
from clara_dist.model.sizes import MetaModel, read_base_config
from clara_dist.model.tokens import ClaraTokenizer
from tiny_models import build_base, build_tokenizer


def real(family: str) -> tuple[ClaraModel, PretrainedConfig]:
    hf = build_tokenizer("metaspace-first")
    base = build_base(family, len(hf))
    config = ClaraConfig(base_model="base", n_memory_tokens=3, doc_max_tokens=24, lora=LoraSettings(r=4))
    tokenizer = ClaraTokenizer(hf, config)
    rows = torch.zeros(tokenizer.n_added_tokens, base.config.hidden_size)
    base_config = type(base.config).from_dict(base.config.to_dict())
    return ClaraModel(config, base, tokenizer, rows[:-3], rows[-3:], None), base_config


def kept_bytes(clara: ClaraModel, n_texts: int, n_tokens: int) -> int:
    """What autograd really keeps of the generator's pass, weights apart."""
    clara.set_trainable(["generator"], memory_embeddings=False)
    weights = {t.untyped_storage().data_ptr() for t in [*clara.parameters(), *clara.peft.buffers()]}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    embeds_BLD = torch.randn(n_texts, n_tokens, clara.hidden_size, requires_grad=True)
    with clara.role("generator"), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        clara.body(embeds_BLD)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("family", ["llama-tied", "qwen3"])
def test_counts_and_activations_are_those_of_the_model(family: str) -> None:
    clara, base_config = real(family)
    meta = MetaModel(clara.config, "float32", base_config)
    assert meta.sizes.base == sum(p.numel() for n, p in clara.peft.named_parameters() if ".lora_" not in n)
    for role in clara.config.roles:
        assert meta.sizes.roles[role] == sum(t.numel() for t in clara.role_state(role).values())
    assert meta.sizes.memory_embeddings == clara.memory_rows.numel()
    assert meta.sizes.vocab_size == clara.base.get_output_embeddings().weight.shape[0]
    assert meta.activation_bytes("generator", 3, 40) == kept_bytes(clara, 3, 40)


def test_a_7b_model_is_counted_without_its_weights() -> None:
    config = ClaraConfig(base_model="not-there", compression_rate=16)
    meta = MetaModel(config, "bfloat16", MistralConfig())
    assert meta.sizes.base == 7_241_732_096
    # r (in + out) of q, k, v, o, gate, up and down, in 32 layers.
    per_layer = 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
    assert set(meta.sizes.roles.values()) == {32 * per_layer}
    whole = meta.activation_bytes("generator", 1, 256)
    assert meta.activation_bytes("generator", 2, 256) == pytest.approx(2 * whole, rel=1e-3)
    checkpointed = meta.activation_bytes("generator", 1, 256, checkpointing=True)
    assert checkpointed == 32 * 256 * 4096 * 2 + whole // 32


def test_a_base_that_is_not_there() -> None:
    with pytest.raises(ModelError, match=r"cannot read the config\.json of the base model"):
        read_base_config(ClaraConfig(base_model="no/such-base"))


def test_tokenizers_are_not_needed(tiny_base_dir: object) -> None:
    config = ClaraConfig(base_model=str(tiny_base_dir), n_memory_tokens=3, doc_max_tokens=24)
    assert MetaModel(config, "float32").sizes.vocab_size >= len(load_tokenizer(str(tiny_base_dir)))
