"""Compression measured: the naive path, a bare loop of the same forward passes, and the whole job on a local Ray."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from clara_dist.bench.corpus import make_passages, write_corpus
from clara_dist.bench.machine import describe_machine, matmul_peak, synchronize
from clara_dist.bench.model import write_random_model
from clara_dist.bench.naive import compress_naively
from clara_dist.config.compress import CompressConfig
from clara_dist.config.model import Dtype
from clara_dist.config.workers import WorkerRange
from clara_dist.inference.compressor import DocumentCompressor
from clara_dist.model.base import DTYPES
from clara_dist.model.clara import ClaraModel
from clara_dist.model.tokens import EncodedText
from clara_dist.planning import ModelShape

# Enough to see them finish one after the other on a few workers.
_SHARDS = 16
_NAIVE_DOCUMENTS = 64


@dataclass(frozen=True)
class BenchSettings:
    """What to measure; see ``clara-dist bench compress --help``."""

    shape: str = "small"
    device: str = "cpu"
    n_documents: int = 2048
    workers: tuple[int, ...] = (1,)
    repeats: int = 3
    naive: bool = True

    @property
    def dtype(self) -> Dtype:
        return "bfloat16" if self.device == "cuda" else "float32"


def run_bench(settings: BenchSettings, output: Path) -> str:
    """Measure, write the figures to ``output``, and return them as text."""
    machine = describe_machine(settings.device)
    passages = make_passages(settings.n_documents)
    with tempfile.TemporaryDirectory(prefix="clara-bench-") as folder:
        model = write_random_model(
            Path(folder), settings.shape, passages[:2000], dtype=settings.dtype, device=settings.device
        )
        write_corpus(Path(folder) / "corpus.jsonl", passages)
        results = _Bench(settings, Path(folder), model, passages).run()
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"machine": machine, "settings": asdict(settings)} | results, indent=2) + "\n")
    return _summary(results)


class _Bench:
    def __init__(self, settings: BenchSettings, folder: Path, model: Path, passages: Sequence[str]) -> None:
        self.settings = settings
        self.folder = folder
        self.model = model
        self.passages = passages
        self.rows_per_shard = max(1, len(passages) // _SHARDS)

    def run(self) -> dict[str, Any]:
        results: dict[str, Any] = {}
        if self.settings.naive:
            results["naive_path"] = self._against_naive()
        compressor = DocumentCompressor(self._load())
        encoded = compressor.tokenize([("", text) for text in self.passages])
        shape = ModelShape.from_config(compressor.clara.base.config.to_dict())
        flops = sum(shape.flops(len(text.ids)) for text in encoded)
        peak = matmul_peak(self.settings.device, DTYPES[self.settings.dtype], n_threads=1)
        # Before and after the job: a machine that is slower for a while shows as a difference of the two.
        bare_s = [self._bare_loop(compressor, encoded)]
        jobs = [self._job(n) for n in self.settings.workers]
        bare_s.append(self._bare_loop(compressor, encoded))
        n = len(self.passages)
        rate = jobs[0]["documents_per_s"] / jobs[0]["workers"]
        results["documents"] = {"n": n, "mean_tokens": sum(len(text.ids) for text in encoded) / n}
        results["bare_loop"] = _rates([n / s for s in bare_s]) | {"threads": 1, "packed": compressor.packed}
        results["job"] = jobs
        results["job_overhead"] = results["bare_loop"]["documents_per_s"] / rate - 1
        results["matmul_peak_flops_per_s"] = peak
        results["bare_loop"]["utilization"] = flops / n * results["bare_loop"]["documents_per_s"] / peak
        results["calibration"] = {
            "device": torch.cuda.get_device_name() if self.settings.device == "cuda" else "cpu",
            "flops_per_s": flops / n * rate,
            "utilization": flops / n * rate / peak,
            "startup_s": jobs[0]["startup_s"],
        }
        return results

    def _load(self) -> ClaraModel:
        return ClaraModel.from_pretrained(self.model, dtype=self.settings.dtype, device=self.settings.device)

    def _against_naive(self) -> dict[str, Any]:
        """From texts to memories on both paths, with all threads of this process."""
        clara = self._load()
        few = self.passages[:_NAIVE_DOCUMENTS]
        naive_SMD = compress_naively(clara, few)
        naive = self._repeat(lambda: compress_naively(clara, few), len(few))
        compressor = DocumentCompressor(clara)
        pairs = [("", text) for text in self.passages]
        encoded = compressor.tokenize(pairs[: len(few)])
        with torch.inference_mode():
            ours_SMD = torch.empty_like(naive_SMD)
            for rows in compressor.batches(encoded):
                ours_SMD[rows] = compressor.forward([encoded[row].ids for row in rows]).float().cpu()
        many = pairs[: max(len(few), len(pairs) // 4)]
        ours = self._repeat(lambda: compressor.compress(many), len(many))
        return {
            "threads": torch.get_num_threads(),
            "naive": naive | {"n_documents": len(few)},
            "ours": ours | {"n_documents": len(many)},
            "ratio": ours["documents_per_s"] / naive["documents_per_s"],
            "largest_difference": float((ours_SMD - naive_SMD).abs().max()),
            "largest_component": float(naive_SMD.abs().max()),
        }

    def _repeat(self, work: Callable[[], object], n: int) -> dict[str, Any]:
        rates = []
        for _ in range(self.settings.repeats):
            started = time.perf_counter()
            work()
            rates.append(n / (time.perf_counter() - started))
        return _rates(rates)

    @torch.inference_mode()
    def _bare_loop(self, compressor: DocumentCompressor, encoded: Sequence[EncodedText]) -> float:
        """Seconds of the job's forward passes alone: the same shards, the same batches, one thread."""
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        seconds = 0.0
        for start in range(0, len(encoded), self.rows_per_shard):
            shard = encoded[start : start + self.rows_per_shard]
            batches = [[shard[row].ids for row in rows] for rows in compressor.batches(shard)]
            if not start:
                compressor.forward(batches[0])  # buffers, kernels
            synchronize(self.settings.device)
            started = time.perf_counter()
            for batch in batches:
                compressor.forward(batch)
            synchronize(self.settings.device)
            seconds += time.perf_counter() - started
        torch.set_num_threads(before)
        return seconds

    def _job(self, n_workers: int) -> dict[str, Any]:
        """The job on a local Ray; its rate leaves out what happens before the first shard is finished."""
        from clara_dist.distributed import compress_job  # nothing else here needs Ray

        config = CompressConfig(
            corpus=(str(self.folder / "corpus.jsonl"),),
            model=str(self.model),
            store=str(self.folder / f"store-{n_workers}"),
            workers=WorkerRange(least=n_workers, most=n_workers),
            device="cuda" if self.settings.device == "cuda" else "cpu",
            dtype=self.settings.dtype,
            rows_per_shard=self.rows_per_shard,
        )
        started = time.perf_counter()
        report = compress_job.compress(config, address="local")
        wall_s = time.perf_counter() - started
        rate = report.documents_per_s or report.n_documents / report.seconds
        return {
            "workers": n_workers,
            "documents_per_s": rate,
            "wall_s": wall_s,
            "startup_s": wall_s - report.n_documents / rate,
            "seconds_by_phase": report.seconds_by_phase,
        }


def _rates(rates: Sequence[float]) -> dict[str, Any]:
    return {"documents_per_s": statistics.median(rates), "lowest": min(rates), "highest": max(rates)}


def _summary(results: dict[str, Any]) -> str:
    lines = []
    if "naive_path" in results:
        found = results["naive_path"]
        lines.append(
            f"naive {found['naive']['documents_per_s']:.1f} documents/s, ours {found['ours']['documents_per_s']:.1f}: "
            f"{found['ratio']:.2f} times as many ({found['threads']} threads, "
            f"memories differ by {found['largest_difference']:.1e} at most)"
        )
    bare = results["bare_loop"]
    lines.append(
        f"bare loop {bare['documents_per_s']:.1f} documents/s, {bare['utilization']:.0%} of the matrix peak of "
        f"{results['matmul_peak_flops_per_s'] / 1e12:.3f} TFLOP/s (one thread on a CPU)"
    )
    first = results["job"][0]
    for job in results["job"]:
        scale = job["documents_per_s"] / first["documents_per_s"]
        lines.append(
            f"job, {job['workers']} workers: {job['documents_per_s']:.1f} documents/s, {scale:.2f} times the first; "
            f"{job['startup_s']:.1f} s to start"
        )
    lines.append(f"the job takes {results['job_overhead']:.1%} longer than the bare loop, start-up apart")
    return "\n".join(lines)
