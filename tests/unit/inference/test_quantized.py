"""A base in 8 bits, on a CPU, which bitsandbytes serves too. Collected where it is installed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clara_dist import Clara
from clara_dist.config import ROLES, ClaraConfig, LoraSettings
from clara_dist.config.compress import CompressConfig
from clara_dist.config.model import Quantization
from clara_dist.distributed.compress_workers import identify_model
from clara_dist.distributed.models import load_model
from clara_dist.errors import FingerprintMismatchError, ModelError
from clara_dist.inference.compressor import DocumentCompressor
from clara_dist.inference.generator import Generator
from clara_dist.inference.reasoner import Reasoner
from tiny_models import SIZES, TEXT, build_base, build_tokenizer, randomize_adapters

QUESTIONS = ["Who built the lighthouse?", "rain"]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bitsandbytes packs 64 weights into a block, so the hidden size is 128 here."""
    base, path = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("model") / "model"
    tokenizer = build_tokenizer("metaspace-first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "hidden_size", 128)
        patch.setitem(SIZES, "intermediate_size", 128)
        build_base("mistral", len(tokenizer)).save_pretrained(base)
    tokenizer.save_pretrained(base)
    config = ClaraConfig(base_model=str(base), n_memory_tokens=3, doc_max_tokens=24, lora=LoraSettings(r=4))
    clara = Clara.from_base(config)
    randomize_adapters(clara)
    clara.save_pretrained(path)
    return path


def load(path: Path, quantization: Quantization | None) -> Clara:
    # LLM.int8() computes in float16 whatever it is asked for.
    return Clara.from_pretrained(path, dtype="bfloat16", quantization=quantization)


def test_memories_are_near_those_of_the_whole_base(model_dir: Path) -> None:
    """Measured: 0.9952 at worst."""
    whole, quantised = (load(model_dir, bits).compress(TEXT).float().flatten(1) for bits in (None, "8bit"))
    cosines_S = torch.cosine_similarity(whole, quantised)
    assert cosines_S.min() > 0.98
    assert cosines_S.max() < 0.99999, "it must be rounded, or this shows nothing"


def test_jobs_run_unmerged(model_dir: Path) -> None:
    clara = load(model_dir, "8bit")
    weight = clara.base.base_model.layers[0].mlp.up_proj.get_base_layer().weight
    assert weight.dtype == torch.int8
    expected = clara.compress(TEXT), clara.reason(QUESTIONS)
    compressed = DocumentCompressor(clara).compress([("", text) for text in TEXT])
    clara.fuse_for_serving()
    assert torch.equal(torch.from_numpy(compressed.memory_SMD), expected[0])
    assert torch.equal(torch.from_numpy(Reasoner(clara).query(QUESTIONS)).view_as(expected[1]), expected[1])
    memories = [expected[0][:2], expected[0][2:]]
    assert len(Generator(clara).generate(QUESTIONS, memories, max_tokens=3)) == 2
    with pytest.raises(ModelError, match="cannot be merged into quantised weights"):
        clara.roles.merge("compressor")
    for role in ROLES:
        assert clara.role_state(role)


def test_its_stores_are_its_own(model_dir: Path, tmp_path: Path) -> None:
    load(model_dir, "8bit").build_store(TEXT, tmp_path / "store")
    assert len(load(model_dir, "8bit").retrieve(QUESTIONS, tmp_path / "store", 2)[0]) == 2
    with pytest.raises(FingerprintMismatchError, match="differ in: quantization"):
        load(model_dir, None).retrieve(QUESTIONS, tmp_path / "store", 2)


def test_a_job_knows_its_identity_without_loading_it_quantised(model_dir: Path) -> None:
    """The driver asks a worker on a CPU, which cannot load every quantised base."""
    config = CompressConfig(corpus=("c",), model=str(model_dir), store="s", quantization="8bit")
    assert identify_model(config).fingerprint.fields == load_model(config, "cpu").fingerprint_fields()


def test_four_bits_need_a_gpu(model_dir: Path) -> None:
    with pytest.raises(ModelError, match=r"4bit base needs a CUDA GPU\n.*cpu"):
        load(model_dir, "4bit")


def test_what_is_saved_is_what_was_loaded(model_dir: Path, tmp_path: Path) -> None:
    load(model_dir, "8bit").save_pretrained(tmp_path / "again")
    for file in model_dir.rglob("*.safetensors"):
        assert (tmp_path / "again" / file.relative_to(model_dir)).read_bytes() == file.read_bytes()
