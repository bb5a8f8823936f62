"""The baseline computes the same memories, and the parts of the benchmark that need no Ray run on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clara_dist.bench.corpus import make_passages
from clara_dist.bench.machine import describe_machine, matmul_peak
from clara_dist.bench.model import write_random_model
from clara_dist.bench.naive import compress_naively
from clara_dist.errors import ConfigError
from clara_dist.inference.compressor import DocumentCompressor
from clara_dist.model.clara import ClaraModel
from clara_dist.planning import ModelShape


@pytest.fixture(scope="module")
def passages() -> list[str]:
    return make_passages(20)


@pytest.fixture(scope="module")
def model(passages: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("bench"), "tiny", passages, dtype="float32", device="cpu")


def test_naive_and_ours_give_the_same_memories(model: Path, passages: list[str]) -> None:
    clara = ClaraModel.from_pretrained(model)
    naive_SMD = compress_naively(clara, passages)
    assert naive_SMD.shape == (20, 16, 32)
    compressor = DocumentCompressor(clara)
    encoded = compressor.tokenize([("", text) for text in passages])
    with torch.inference_mode():
        for rows in compressor.batches(encoded):
            ours_BMD = compressor.forward([encoded[row].ids for row in rows])
            torch.testing.assert_close(ours_BMD, naive_SMD[rows], rtol=0, atol=1e-5)


def test_the_plan_counts_the_weights_that_are_there(model: Path) -> None:
    base = ClaraModel.from_pretrained(model).base
    shape = ModelShape.from_file(model.parent / "base")
    matrices = sum(p.numel() for p in base.parameters() if p.ndim == 2 and "lora" not in str(p))
    lora = sum(p.numel() for name, p in base.named_parameters() if "lora_" in name)
    assert shape.body_parameters + shape.embedding_parameters == matrices - lora


def test_unknown_shape(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tiny, small, 7b"):
        write_random_model(tmp_path, "huge", [], dtype="float32", device="cpu")


def test_what_a_measurement_says_of_the_machine() -> None:
    machine = describe_machine("cpu")
    assert machine["n_cpus"] >= 1
    assert machine["versions"]["torch"] == torch.__version__
    assert 1e8 < matmul_peak("cpu", torch.float32, n_threads=1) < 1e14
