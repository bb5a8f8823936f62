"""The benchmark of compression runs from end to end; what it measures is not judged here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clara_dist.bench.compress import BenchSettings, run_bench
from clara_dist.planning import Calibration


def test_figures_fit_each_other(local_ray: None, tmp_path: Path) -> None:
    output = tmp_path / "results" / "bench.json"
    text = run_bench(BenchSettings(shape="tiny", n_documents=64, repeats=1), output)
    found = json.loads(output.read_text(encoding="utf-8"))
    naive = found["naive_path"]
    assert naive["largest_difference"] < 1e-5 < naive["largest_component"]
    assert naive["ratio"] == naive["ours"]["documents_per_s"] / naive["naive"]["documents_per_s"]
    (job,) = found["job"]
    assert 1 + found["job_overhead"] == pytest.approx(
        found["bare_loop"]["documents_per_s"] / job["documents_per_s"], rel=1e-6
    )
    assert job["startup_s"] + 64 / job["documents_per_s"] == pytest.approx(job["wall_s"])
    calibration = Calibration.from_file(output)
    assert calibration.utilization == pytest.approx(calibration.flops_per_s / found["matmul_peak_flops_per_s"])
    assert calibration.device == "cpu"
    assert found["machine"]["versions"].keys() >= {"torch", "ray", "transformers"}
    assert f"{naive['ratio']:.2f} times" in text
