"""The search benchmark, on a store that takes no time: it compares what it says it compares."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from clara_dist.bench import search, search_others
from clara_dist.bench.search import SearchBenchSettings, read_all, run_bench
from clara_dist.errors import ConfigError

TINY = SearchBenchSettings(rows=300, size=64, shards=2, top_k=5, batch_sizes=(1, 20), threads=1, repeats=1)


def test_all_contestants_find_the_same_rows(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    text = run_bench(TINY, tmp_path / "out" / "search.json")
    figures = json.loads((tmp_path / "out" / "search.json").read_text())
    assert figures["store_bytes"] == 300 * 64 * 2
    assert 0 <= figures["cpu_share_of_others"] <= 1
    recalls = {(row["name"], row["queries"]): row["recall"] for row in figures["searches"]}
    names = {"clara_dist", "NumPy, fp32", "FAISS flat, fp32", "FAISS flat, fp16", "usearch exact, fp16"}
    assert set(recalls) == {(name, batch) for name in names for batch in (1, 20)}
    for (name, _), recall in recalls.items():
        # The half-precision ones may swap the last place with the next.
        assert recall == 1 if "fp16" not in name else recall >= 0.9
    for row in figures["searches"]:
        rate = figures["store_bytes"] / row["best_s"] / 1e9
        assert row["of_read_bandwidth"]["best_gb_per_s"] == pytest.approx(rate / figures["read"]["best_gb_per_s"])
    assert "clara_dist" in text
    assert torch.get_num_threads() == before


def test_reading_reads_every_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_READ_CHUNK_BYTES", 64)
    arrays = [np.zeros((10, 12), np.float16) for _ in range(2)]
    bits = arrays[1].view(np.uint16)
    for i in range(16):  # one bit in each of 16 places, first and last among them
        bits.reshape(-1)[i * 119 // 15] |= 1 << i
    with ThreadPoolExecutor(2) as pool:
        found = read_all(arrays, pool)
    halves = [found >> shift & 0xFFFF for shift in (0, 16, 32, 48)]
    assert np.bitwise_or.reduce(halves) == 0xFFFF


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(ConfigError, match=r"needs faiss\n.*clara-dist\[bench\]"):
        search_others.faiss_flat(np.ones((2, 4), np.float32), 1, 1)
