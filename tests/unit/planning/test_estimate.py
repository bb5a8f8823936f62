from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from clara_dist.errors import ConfigError
from clara_dist.planning import Calibration, GpuKind, Lengths, ModelShape, Workload, estimate, find_gpu

MISTRAL_7B = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}
SHAPE = ModelShape.from_config(MISTRAL_7B)


def wikipedia(n_memory_tokens: int) -> Workload:
    return Workload(SHAPE, 21_000_000, n_memory_tokens, Lengths.parse("256"))


def test_parameters_of_mistral_7b() -> None:
    """7,241,732,096 by its card, of which 2 * 32 + 1 norms of 4,096 are no matrices."""
    assert SHAPE.body_parameters + SHAPE.embedding_parameters == 7_241_732_096 - 65 * 4096


def test_what_7b_costs() -> None:
    """Published sizes: 3.8 TFLOP a document of 256 + 16 tokens, 259 a second at the H200's peak."""
    work = wikipedia(16)
    assert work.flops_per_document == pytest.approx(3.816e12, rel=1e-3)
    at_peak = estimate(work, gpu=find_gpu("h200"), utilization=1.0)
    assert round(at_peak.documents_per_s) == 259
    plan = estimate(work, gpu=find_gpu("H200"))
    assert round(plan.worker_hours, 1) == 37.5
    assert plan.rate_source == "60% of the H200's peak, assumed"
    assert round(plan.memory_size_bytes / 1e12, 2) == 2.75
    # CR 128 is M = 2; fewer memory tokens are read, too.
    small = estimate(wikipedia(2), gpu=find_gpu("H200"))
    assert round(small.memory_size_bytes / 1e12, 2) == 0.34
    assert small.worker_hours == pytest.approx(plan.worker_hours * 258 / 272, rel=1e-3)


def test_workers_divide_the_work_but_not_the_start() -> None:
    work, gpu = wikipedia(16), GpuKind("X", 1e15, 80e9, 4.0)
    one, eight = (estimate(work, gpu=gpu, n_workers=n, utilization=0.5) for n in (1, 8))
    startup_h = one.wall_hours - one.worker_hours
    assert startup_h * 3600 == pytest.approx(30 + 14.48, abs=0.01)  # processes, and 14.5 GB at 1 GB/s
    assert eight.wall_hours == pytest.approx(one.worker_hours / 8 + startup_h)
    assert eight.compute_cost == pytest.approx(4.0 * (one.worker_hours + 8 * startup_h))
    assert eight.read_bytes - one.read_bytes == pytest.approx(7 * 14.48e9, rel=1e-3)
    assert eight.network_bits_per_s == pytest.approx(
        8 * (eight.read_bytes + eight.written_bytes) / eight.wall_hours / 3600
    )
    dear = estimate(work, gpu=gpu, utilization=0.5, cost_per_hour=8.0, storage_cost_per_gb_month=0.1)
    assert one.compute_cost is not None
    assert dear.compute_cost == 2 * one.compute_cost
    assert dear.storage_cost_per_month == pytest.approx(0.1e-9 * (dear.written_bytes + dear.index_size_bytes))
    assert one.text_size_bytes == 21_000_000 * (4 * 256 + 64)
    assert one.index_size_bytes == 21_000_000 * 4104


def test_lengths_are_a_distribution() -> None:
    lengths = Lengths.parse("64:2,128:5,256:3")
    assert lengths.mean == pytest.approx(153.6)
    mixed = Workload(SHAPE, 10, 16, lengths).flops_per_document
    parts = [Workload(SHAPE, 10, 16, Lengths.parse(n)).flops_per_document for n in ("64", "128", "256")]
    assert mixed == pytest.approx(0.2 * parts[0] + 0.5 * parts[1] + 0.3 * parts[2])
    # Attention grows with the square: a mixture costs more than its mean.
    assert mixed > Workload(SHAPE, 10, 16, Lengths.parse("153.6")).flops_per_document
    for wrong in ("", "a", "64:", "64:0", "-3", "1:2:3"):
        with pytest.raises(ConfigError, match="lengths"):
            Lengths.parse(wrong)


def test_a_measurement_beats_the_assumption(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    file.write_text(
        json.dumps({"calibration": {"device": "X1", "flops_per_s": 2e12, "utilization": 0.4, "startup_s": 12.0}})
    )
    found = Calibration.from_file(file)
    work = wikipedia(16)
    here = estimate(work, calibration=found, n_workers=2)
    assert here.worker_hours == pytest.approx(21e6 * work.flops_per_document / 2e12 / 3600)
    assert here.wall_hours == pytest.approx(here.worker_hours / 2 + 12 / 3600)
    assert here.compute_cost is None
    there = estimate(work, calibration=found, gpu=find_gpu("A100"))
    assert there.documents_per_s == pytest.approx(0.4 * 312e12 / work.flops_per_document)
    with pytest.raises(ConfigError, match="says nothing of GPUs"):
        estimate(work, calibration=Calibration("cpu", 1e11, 0.7, 1.0), gpu=find_gpu("A100"))
    file.write_text("{}")
    with pytest.raises(ConfigError, match="no result of"):
        Calibration.from_file(file)


def test_what_cannot_be_planned() -> None:
    work = wikipedia(16)
    with pytest.raises(ConfigError, match="--gpu or --calibration"):
        estimate(work)
    with pytest.raises(ConfigError, match="expected: A100, H100, H200, L40S"):
        find_gpu("TPU")
    big = Workload(ModelShape(8192, 70e9), 1, 16, Lengths.parse("256"))
    with pytest.raises(ConfigError, match="does not fit one H100"):
        estimate(big, gpu=find_gpu("H100"))
    with pytest.raises(ConfigError, match="lacks a size"):
        ModelShape.from_config({"hidden_size": 3})
    with pytest.raises(ConfigError, match="experts"):
        ModelShape.from_config({**MISTRAL_7B, "num_local_experts": 8})


def test_shapes_of_other_families(tmp_path: Path) -> None:
    gemma = {**MISTRAL_7B, "head_dim": 256, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": gemma}))
    shape = ModelShape.from_file(tmp_path)
    assert shape.body_parameters == 32 * (4096 * 256 * 2 * (32 + 8) + 3 * 4096 * 14336)
    assert shape.embedding_parameters == 32000 * 4096
    assert shape.attention_size == 32 * 32 * 256
    assert math.isclose(ModelShape(4096, 7e9).flops(272), 2 * 7e9 * 272)


def test_arithmetic_needs_nothing_heavy() -> None:
    script = "import sys, clara_dist.planning; print({'torch', 'ray', 'numpy', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
