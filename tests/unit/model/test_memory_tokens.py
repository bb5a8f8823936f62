"""Compression rates 1x to 256x, and the memory tokens' embeddings of a new model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from clara_dist.config import ClaraConfig, LoraSettings
from clara_dist.config.base import load_config
from clara_dist.errors import ConfigError
from clara_dist.inference.compressor import DocumentCompressor
from clara_dist.model.batch import TextBatch
from clara_dist.model.clara import ClaraModel

TEXT = "Rain gauges on the island are emptied at nine in the morning. " * 80
# doc_max_tokens, compression rate, M; the last three do not divide.
RATES = [
    *((256, 1, 256), (256, 4, 64), (256, 16, 16), (256, 32, 8), (256, 128, 2), (256, 256, 1), (512, 256, 2)),
    *((100, 16, 6), (256, 7, 36), (300, 256, 1)),
]


def by_transformers(base_dir: Path, clara: ClaraModel, ids: list[int]) -> torch.Tensor:
    """Last hidden states of the plain base over the same embeddings: a new LoRA changes nothing."""
    base = AutoModelForCausalLM.from_pretrained(base_dir)
    added = torch.cat([clara.memory_rows, clara.frame_rows])
    first = clara.tokenizer.first_memory_id
    own = base.get_input_embeddings().weight
    with torch.no_grad():
        rows = torch.stack([own[i] if i < first else added[i - first] for i in ids])
        return base.model(inputs_embeds=rows[None]).last_hidden_state[0]


@pytest.mark.parametrize(("doc_max_tokens", "rate", "m"), RATES)
def test_every_rate_compresses_a_long_text(tiny_base_dir: Path, doc_max_tokens: int, rate: int, m: int):
    config = ClaraConfig.model_validate(
        {
            "base_model": str(tiny_base_dir),
            "doc_max_tokens": doc_max_tokens,
            "compression_rate": rate,
            "lora": LoraSettings(r=2),
            "max_prompt_tokens": 4096,
        }
    )
    assert (config.n_memory_tokens, config.compression_rate) == (m, doc_max_tokens // m)
    clara = ClaraModel.from_base(config)
    assert clara.memory_rows.shape == (m, 32)
    encoded = clara.tokenizer.encode_text(TEXT)
    assert (encoded.n_tokens, encoded.truncated, len(encoded.ids)) == (doc_max_tokens + 3, True, doc_max_tokens + 3 + m)
    assert encoded.ids[-m:] == clara.tokenizer.memory_ids == list(dict.fromkeys(encoded.ids[-m:]))
    batch = TextBatch.from_ids([encoded.ids], 0)
    with torch.no_grad():
        memory_MD = clara.encode("compressor", batch).memory_BMD[0]
    torch.testing.assert_close(memory_MD, by_transformers(tiny_base_dir, clara, encoded.ids)[-m:], rtol=1e-5, atol=1e-5)
    # Every one of the M says something of its own: distinct embeddings at distinct places.
    distances = torch.pdist(memory_MD)
    assert m == 1 or distances.min() > 1e-3
    compressed = DocumentCompressor(clara).compress([("", TEXT)])
    np.testing.assert_allclose(compressed.memory_SMD[0], memory_MD.numpy(), rtol=2**-11, atol=1e-5)
    prompt = clara.tokenizer.prompt("Who?", 1)
    assert sum(prompt_id in clara.tokenizer.memory_ids for prompt_id in prompt) == m


def test_the_rate_is_another_name_for_the_number_of_memory_tokens():
    assert ClaraConfig.model_validate({"base_model": "b", "compression_rate": 16}) == ClaraConfig(base_model="b")
    assert load_config(ClaraConfig, None, ["base_model=b", "compression_rate=64"]).n_memory_tokens == 4
    for wrong in ("compression_rate=0", "compression_rate=257", "compression_rate=1.5"):
        with pytest.raises(ConfigError, match="from 1 to doc_max_tokens"):
            load_config(ClaraConfig, None, ["base_model=b", wrong])
    with pytest.raises(ConfigError, match="not both"):
        load_config(ClaraConfig, None, ["base_model=b", "compression_rate=16", "n_memory_tokens=16"])


def test_new_memory_embeddings_are_distinct_and_repeatable(tiny_base_dir: Path):
    config = ClaraConfig(base_model=str(tiny_base_dir), n_memory_tokens=64, lora=LoraSettings(r=2))
    rows_MD = ClaraModel.from_base(config, seed=5).memory_rows.detach()
    norms_M = rows_MD.norm(dim=1)
    # Independent directions of like length: no two are nearer than half of a length, and none is lost among the others.
    assert torch.pdist(rows_MD).min() > 0.5 * norms_M.mean()
    assert norms_M.max() < 3 * norms_M.min()
    assert torch.equal(rows_MD, ClaraModel.from_base(config, seed=5).memory_rows)
    assert not torch.equal(rows_MD, ClaraModel.from_base(config, seed=6).memory_rows)
