"""What a running compression job tells: the summary, and metrics that are scraped from Ray."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import httpx
import pytest
import ray
from ray.util.metrics import Counter

from clara_dist.config.compress import CompressConfig
from clara_dist.distributed.actor_pool import ActorPool
from clara_dist.distributed.compress_job import compress
from clara_dist.model.clara import ClaraModel

N = 90


@pytest.fixture
def config(tmp_path: Path, tiny_clara_dir: Path) -> CompressConfig:
    lines = [json.dumps({"doc_id": f"d{i}", "text": "rain gauges on the island " * (i % 3 + 1)}) for i in range(N)]
    (tmp_path / "corpus.jsonl").write_text("\n".join([*lines, "{broken"]), encoding="utf-8")
    return CompressConfig(
        corpus=(str(tmp_path / "corpus.jsonl"),),
        model=str(tiny_clara_dir),
        store=str(tmp_path / "store"),
        rows_per_shard=10,
        workers="1:2",
        max_rejects=0.5,
    )


def scraped() -> dict[str, float]:
    """Our series of all nodes' endpoints, by name and labels."""
    series: dict[str, float] = {}
    for node in ray.nodes():
        text = httpx.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics").text
        for name, labels, value in re.findall(r"^ray_(clara_compress_\w+)(\{.*\})? (\S+)$", text, re.MULTILINE):
            phase = re.search(r'phase="(\w+)"', labels)
            if 'le="' not in labels:
                series[name + (f" {phase[1]}" if phase else "")] = float(value)
    return series


def settled() -> dict[str, float]:
    """The series with all that jobs before this one counted: a process reports its counters together, and in time."""
    Counter("clara_compress_marker_total", "Counted behind them").inc()
    deadline = time.monotonic() + 180
    while "clara_compress_marker_total" not in (series := scraped()):
        assert time.monotonic() < deadline
    return series


def test_summary_and_metrics_hold_the_same_figures(local_ray: None, config: CompressConfig) -> None:
    before = settled()
    report = compress(config)
    encoder = ClaraModel.from_pretrained(config.model).tokenizer
    texts = encoder.encode_texts(["rain gauges on the island " * (i % 3 + 1) for i in range(N)])
    figures = json.loads(report.to_json())
    assert (figures["n_documents"], figures["n_rejected"], figures["n_shards"]) == (N, 1, 9)
    assert figures["n_tokens"] == sum(len(text.ids) for text in texts)
    files = list(Path(config.store, "shards").glob("*.arrow"))
    assert figures["size_bytes"] == sum(path.stat().st_size for path in files)
    phases = figures["seconds_by_phase"]
    in_turn = [phases[name] for name in ("scan", "load_model", "compress", "commit")]
    assert min(in_turn) > 0
    assert sum(in_turn) <= figures["seconds"]
    assert 0 < phases["worker_compute"] < 2 * phases["compress"]
    expected = {
        "clara_compress_documents_total": N,
        "clara_compress_tokens_total": figures["n_tokens"],
        "clara_compress_bytes_written_total": figures["size_bytes"],
        "clara_compress_rejects_total": 1,
        "clara_compress_batch_seconds_count": 9,
        "clara_compress_shard_seconds_count compute": 9,
    }
    # Ray reports every few seconds; other jobs of this process count in the same series.
    deadline = time.monotonic() + 180
    while True:
        grown = {name: scraped().get(name, 0) - before.get(name, 0) for name in expected}
        if grown == expected:
            return
        assert time.monotonic() < deadline, grown


class Together:
    """Says how many run, and waits until as many do as are expected."""

    def __init__(self, folder: str, n: int) -> None:
        self.folder, self.n = Path(folder), n

    def __call__(self, task: int) -> int:
        me = self.folder / f"{task}-{ray.get_runtime_context().get_actor_id()}"
        me.touch()
        deadline = time.monotonic() + 60
        while len({path.name.split("-")[1] for path in self.folder.iterdir()}) < self.n:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return task


def test_a_pool_grows_while_all_its_actors_are_busy(local_ray: None, tmp_path: Path) -> None:
    """It starts with one actor; no task ends before a second actor works on one."""
    pool = ActorPool(2, min_size=1, num_cpus=0.5, concurrent_tasks=2)
    assert sorted(index for index, _ in pool(Together, {"folder": str(tmp_path), "n": 2}, range(6))) == list(range(6))


class Meets:
    """Two calls in one actor wait for each other, as reading and computing do."""

    def __init__(self) -> None:
        import threading

        self.barrier = threading.Barrier(2, timeout=60)

    def __call__(self, task: int) -> int:
        self.barrier.wait()
        return task


def test_an_actor_works_on_two_tasks_at_a_time(local_ray: None) -> None:
    assert len(list(ActorPool(1, concurrent_tasks=2)(Meets, {}, range(6)))) == 6
