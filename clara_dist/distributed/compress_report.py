"""What a compression job did, and what it took."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from clara_dist.distributed.compress_metrics import CompressMetrics
from clara_dist.distributed.compress_workers import FinishedShard


@dataclass
class JobCosts:
    """Adds up what a job takes while it runs.

    Attributes:
        metrics: Where the figures go as well; None without a cluster.
        n_made: Documents compressed.
        n_tokens: Tokens that the model read, memory tokens included.
        size_bytes: Bytes of the shards made.
        seconds: By phase. ``scan``, ``load_model`` (what of it scanning does not hide), ``compress`` and ``commit``
            follow each other; ``worker_read``, ``worker_compute`` and ``worker_write`` are sums over all workers, and
            side by side in each.
    """

    metrics: CompressMetrics | None = None
    n_made: int = 0
    n_tokens: int = 0
    size_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure a ``with`` block."""
        started = time.monotonic()
        yield
        self._add(name, time.monotonic() - started)

    def shard(self, shard: FinishedShard) -> None:
        """Count a shard, unless an earlier job had made it."""
        if shard.cost is None:
            return
        self.n_made += shard.info.documents
        self.n_tokens += shard.cost.n_tokens
        self.size_bytes += shard.info.size_bytes
        self._add("worker_read", shard.cost.read_s)
        self._add("worker_compute", shard.cost.compute_s)
        self._add("worker_write", shard.cost.write_s)
        if self.metrics is not None:
            self.metrics.shard(shard)

    def _add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


@dataclass(frozen=True)
class CompressReport:
    """What a job did.

    Attributes:
        n_documents: Documents in the store.
        n_passages: Rows that they are in the store: more, where long ones were split.
        n_truncated: Rows whose text the model did not read to its end.
        n_rejected: Rows that did not enter it because they are bad.
        n_repeated: Documents that were left out because the very same one is in the corpus already.
        n_kept: Documents whose shards an earlier, unfinished job had made.
        was_complete: The store held all of this already; nothing was done.
        n_tokens: Tokens that this job's model read, memory tokens included.
        size_bytes: Bytes of the shards that this job made.
        seconds: From the first row scanned to the commit.
        seconds_by_phase: See `JobCosts`.
        documents_per_s: Since the first shard was finished, which leaves out starting and loading; None if that was
            all.
    """

    store: str
    version: int
    n_documents: int
    n_passages: int
    n_truncated: int
    n_shards: int
    n_rejected: int
    n_repeated: int
    n_kept: int
    rejects: str
    was_complete: bool
    n_tokens: int
    size_bytes: int
    seconds: float
    seconds_by_phase: dict[str, float]
    documents_per_s: float | None

    def to_json(self) -> str:
        """All figures as one JSON object."""
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        done = "complete already" if self.was_complete else f"written in {self.seconds:.1f} s"
        lines = [
            f"store {self.store}, version {self.version}: "
            f"{self.n_documents} documents in {self.n_shards} shards, {done}"
        ]
        if self.n_passages > self.n_documents:
            lines.append(f"  long documents were split: {self.n_passages} passages in all")
        if self.n_truncated:
            lines.append(f"  longer than the model reads, so cut: {self.n_truncated} (rows where truncated is true)")
        if self.n_tokens:
            rate = f"{self.documents_per_s:.1f} documents/s, " if self.documents_per_s else ""
            lines.append(f"  {rate}{self.n_tokens:,} tokens read, {self.size_bytes:,} bytes written")
        if self.seconds_by_phase:
            lines.append("  seconds: " + ", ".join(f"{name} {s:.1f}" for name, s in self.seconds_by_phase.items()))
        if self.n_kept:
            lines.append(f"  kept from a job that had not finished: {self.n_kept} documents")
        if self.n_rejected or self.n_repeated:
            lines.append(
                f"  left out: {self.n_rejected} bad rows, {self.n_repeated} repeated documents; see {self.rejects}"
            )
        return "\n".join(lines)
