"""Exact search measured, beside NumPy, FAISS and usearch, and against the speed at which this machine reads memory."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from clara_dist.bench.machine import describe_machine
from clara_dist.bench.search_others import faiss_flat, faiss_half, numpy_blas, usearch_exact
from clara_dist.retrieval.search import ExactSearcher
from clara_dist.store import Fingerprint, MemoryStore, StoreSchema, commit, write_shard

_READ_CHUNK_BYTES = 8 << 20
_OURS = "clara_dist"
_READ = "read only"


@dataclass(frozen=True)
class SearchBenchSettings:
    """What to measure; see ``clara-dist bench search --help``."""

    rows: int = 65_536
    size: int = 8192
    shards: int = 8
    top_k: int = 20
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    threads: int = 2
    repeats: int = 11
    seed: int = 0


def run_bench(settings: SearchBenchSettings, output: Path) -> str:
    """Measure, write the figures to ``output``, and return them as text.

    Raises:
        ConfigError: FAISS or usearch is not installed.
    """
    machine = describe_machine("cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        with tempfile.TemporaryDirectory(prefix="clara-bench-") as folder:
            results = _Bench(settings, write_random_store(settings, Path(folder))).run()
    finally:
        torch.set_num_threads(before)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"machine": machine, "settings": asdict(settings)} | results, indent=2) + "\n")
    return _summary(results)


def write_random_store(settings: SearchBenchSettings, folder: Path) -> MemoryStore:
    """A store of normally distributed memories of different lengths."""
    generator = np.random.default_rng(settings.seed)
    schema = StoreSchema(1, settings.size)
    shards = []
    for i, part in enumerate(np.array_split(np.arange(settings.rows), settings.shards)):
        n = len(part)
        memory = generator.standard_normal((n, 1, settings.size), np.float32)
        memory *= generator.uniform(0.5, 2, (n, 1, 1)).astype(np.float32)
        table = schema.to_table(
            doc_ids=[f"doc-{row}" for row in part],
            titles=[""] * n,
            texts=[""] * n,
            metadata=[{}] * n,
            memory_SMD=memory.astype(np.float16),
            n_tokens=np.ones(n, np.int64),
            truncated=np.zeros(n, bool),
        )
        shards.append(write_shard(folder, table, f"shard-{i}"))
    commit(folder, schema, Fingerprint({"model": "random"}), shards)
    return MemoryStore.open(folder)


class _Bench:
    def __init__(self, settings: SearchBenchSettings, store: MemoryStore) -> None:
        self.settings = settings
        self.store = store
        self.mapped = [shard.memory_SMD.reshape(shard.rows, -1) for shard in store.shards]
        generator = np.random.default_rng(settings.seed + 1)
        self.query_BX = generator.standard_normal((max(settings.batch_sizes), settings.size)).astype(np.float32)

    def run(self) -> dict[str, Any]:
        """Contestants take turns, so that a machine that is slower for a while is slower for all."""
        contestants = self._contestants()
        n_bytes = sum(memory.nbytes for memory in self.mapped)
        expected_BK = self._expected()
        times: dict[tuple[str, int], list[tuple[float, float]]] = {}
        recalls: dict[tuple[str, int], float] = {}
        others = _Others()
        with ThreadPoolExecutor(self.settings.threads) as pool:
            for repeat in range(self.settings.repeats + 1):
                runs: list[tuple[str, int, Callable[[], Any]]] = [(_READ, 1, lambda: read_all(self.mapped, pool))]
                for batch in self.settings.batch_sizes:
                    query_BX = self.query_BX[:batch]
                    runs += [(name, batch, _bound(search, query_BX)) for name, search in contestants.items()]
                for name, batch, run in runs:
                    seconds, found = _timed(run)
                    if repeat:  # the first one maps pages and warms up
                        times.setdefault((name, batch), []).append(seconds)
                    elif name != _READ:
                        recalls[name, batch] = _recall(found, expected_BK[:batch])
        share_of_others = others.share()
        read = _figures(times.pop((_READ, 1)), n_bytes)
        searches = []
        for (name, batch), spent in times.items():
            figures = _figures(spent, n_bytes)
            share = {key: figures[key] / read[key] for key in _RATES}
            searches.append(
                {"name": name, "queries": batch, "recall": recalls[name, batch], **figures, "of_read_bandwidth": share}
            )
        return {
            "store_bytes": n_bytes,
            "cpu_share_of_others": share_of_others,
            "read": read,
            "searches": searches,
        }

    def _contestants(self) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
        """Each finds rows_BK for query_BX."""
        k, threads = self.settings.top_k, self.settings.threads
        ours = ExactSearcher(self.store)
        half_SX = np.concatenate(self.mapped)
        unit_SX = half_SX.astype(np.float32)
        unit_SX /= np.linalg.norm(unit_SX, axis=1, keepdims=True)
        return {
            _OURS: lambda query_BX: ours.search(query_BX, k).rows_BK.numpy(),
            "NumPy, fp32": numpy_blas(unit_SX, k),
            "FAISS flat, fp32": faiss_flat(unit_SX, k, threads),
            "FAISS flat, fp16": faiss_half(unit_SX, k, threads),
            "usearch exact, fp16": usearch_exact(half_SX, k, threads),
        }

    def _expected(self) -> np.ndarray:
        """rows_BK by float64 cosines of all rows."""
        query_XB = self.query_BX.T.astype(np.float64)
        scores = []
        for memory in self.mapped:
            for low in range(0, len(memory), 1024):
                wide = memory[low : low + 1024].astype(np.float64)
                scores.append((wide @ query_XB) / np.linalg.norm(wide, axis=1, keepdims=True))
        return np.argsort(-np.concatenate(scores), axis=0, kind="stable")[: self.settings.top_k].T


class _Others:
    """How much of the machine other processes take meanwhile: above a few percent, the figures are theirs as well."""

    def __init__(self) -> None:
        self._start = self._now()

    def share(self) -> float:
        busy, own, all_ = (end - start for end, start in zip(self._now(), self._start, strict=True))
        return max(0.0, busy - own) / all_

    @staticmethod
    def _now() -> tuple[float, float, float]:
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        return sum(times) - idle, time.process_time(), sum(times)


def read_all(arrays: Sequence[np.ndarray], pool: ThreadPoolExecutor) -> int:
    """Read every byte of some arrays and do next to nothing with it: as fast as reading can be."""
    chunks = []
    for array in arrays:
        words = array.reshape(-1).view(np.int64)
        step = _READ_CHUNK_BYTES // words.itemsize
        chunks += [words[low : low + step] for low in range(0, len(words), step)]
    return int(np.bitwise_or.reduce(list(pool.map(np.bitwise_or.reduce, chunks))))


def _bound(search: Callable[[np.ndarray], np.ndarray], query_BX: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: search(query_BX)


def _timed(run: Callable[[], Any]) -> tuple[tuple[float, float], Any]:
    """Seconds of the clock and of all processors, and what came of it."""
    started = time.perf_counter(), time.process_time()
    result = run()
    return (time.perf_counter() - started[0], time.process_time() - started[1]), result


# "per_cpu" divides by the time that this process had a processor: what it can do where others are at work too.
_RATES = ("best_gb_per_s", "median_gb_per_s", "median_gb_per_cpu_s")


def _figures(seconds: Sequence[tuple[float, float]], n_bytes: int) -> dict[str, float]:
    """Times, and the rates at which the fp16 memories were gone through; whoever reads fp32 reads twice as much."""
    wall = [pair[0] for pair in seconds]
    median, cpu = statistics.median(wall), statistics.median(pair[1] for pair in seconds)
    rates = (n_bytes / time / 1e9 for time in (min(wall), median, cpu))
    return {"best_s": min(wall), "median_s": median, "median_cpu_s": cpu} | dict(zip(_RATES, rates, strict=True))


def _recall(found_BK: np.ndarray, expected_BK: np.ndarray) -> float:
    hits = [len(set(found) & set(expected)) for found, expected in zip(found_BK, expected_BK, strict=True)]
    return sum(hits) / expected_BK.size


def _summary(results: dict[str, Any]) -> str:
    read = results["read"]
    lines = [
        f"{results['store_bytes'] / 1e9:.2f} GB of fp16; others: {results['cpu_share_of_others']:.0%} of the machine",
        f"memory reads at {read['best_gb_per_s']:.1f} GB/s at best, "
        f"{read['median_gb_per_s']:.1f} in the median, {read['median_gb_per_cpu_s']:.1f} per CPU second",
        "search              queries recall  best ms  median ms   GB/s  of read speed: best  median  per CPU second",
    ]
    for row in results["searches"]:
        best, median, cpu = (row["of_read_bandwidth"][key] for key in _RATES)
        lines.append(
            f"{row['name']:20}{row['queries']:7}{row['recall']:7.3f}{row['best_s'] * 1e3:9.1f}"
            f"{row['median_s'] * 1e3:11.1f}{row['best_gb_per_s']:7.1f}{best:22.0%}{median:8.0%}{cpu:16.0%}"
        )
    return "\n".join(lines)
