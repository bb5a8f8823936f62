"""Twenty killed workers and two killed nodes in one run: the store is that of an undisturbed run."""

from __future__ import annotations

import json
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from chaos_corpus import rows_of, temporary_files, undisturbed, write_config
from clara_dist.data.corpus import plan_units
from clara_dist.distributed.actor_pool import ActorPool
from clara_dist.distributed.compress_job import run
from clara_dist.distributed.compress_workers import identify_model
from clara_dist.distributed.session import connect

N_WORKER_KILLS = 20
NODE_KILLS_AT = (80, 160)
EVERY = 5  # finished shards between two kills


class Killer:
    """A mapper that kills as its tasks are finished.

    Each kill waits for its own number of finished shards, and for a worker to be there to be killed.
    """

    def __init__(self, pool: ActorPool, nodes: Any) -> None:
        self.pool = pool
        self.nodes = nodes
        self.random = random.Random(0)
        self.counts: Counter[str] = Counter()

    def __call__(
        self, worker: Callable[..., Any], arguments: Mapping[str, Any], tasks: Sequence[Any]
    ) -> Iterator[tuple[int, Any]]:
        for index, result in self.pool(worker, arguments, tasks):
            self.counts["shards"] += 1
            yield index, result
            if self.counts["shards"] in NODE_KILLS_AT:
                self.nodes.kill_oldest()
                self.nodes.add()
                self.counts["node kills"] += 1
            elif self.counts["shards"] >= EVERY * (self.counts["worker kills"] + 1):
                self.kill_a_worker()

    def kill_a_worker(self) -> None:
        victims = self.nodes.compressors()
        if self.counts["worker kills"] < N_WORKER_KILLS and victims:
            victim: psutil.Process = self.random.choice(victims)
            victim.kill()
            victim.wait()
            self.counts["worker kills"] += 1


def test_twenty_killed_workers_and_two_killed_nodes(
    nodes: Any, tiny_clara_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = write_config(tmp_path / "job", tiny_clara_dir, n_documents=1440, rows_per_shard=3, workers=2)
    expected = undisturbed(config, tmp_path / "undisturbed")
    units = plan_units(config.corpus, format=config.format, rows_per_unit=config.rows_per_shard)
    started = time.monotonic()
    with connect(nodes.address), caplog.at_level(logging.WARNING):
        killer = Killer(ActorPool(2, concurrent_tasks=2), nodes)
        report = run(
            config,
            units,
            scan_on=ActorPool(2),
            compress_on=killer,
            identify=lambda: identify_model(config),
        )
    figures = {
        **killer.counts,
        "rounds": 1 + sum("tasks are left" in record.message for record in caplog.records),
        "temporary files left": len(temporary_files(config.store)),
        "seconds": round(time.monotonic() - started, 1),
    }
    (tmp_path / "figures.json").write_text(json.dumps(figures), encoding="utf-8")
    print(figures)
    assert killer.counts == {"shards": len(units), "worker kills": N_WORKER_KILLS, "node kills": len(NODE_KILLS_AT)}
    assert (report.n_documents, report.n_rejected, report.n_shards) == (1440, 2, len(units))
    assert rows_of(config.store) == expected
