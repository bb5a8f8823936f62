"""What a compression job says to Prometheus, through Ray's own exporter (``ray_clara_compress_...`` on every node)."""

from __future__ import annotations

from ray.util.metrics import Counter, Histogram

from clara_dist.distributed.compress_workers import FinishedShard

_SECONDS = [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300]


class CompressMetrics:
    """Counters of one job, kept by its driver, so that a shard that was made twice counts once."""

    def __init__(self) -> None:
        self._documents = Counter("clara_compress_documents_total", "Documents in finished shards")
        self._tokens = Counter("clara_compress_tokens_total", "Tokens that the model read, memory tokens included")
        self._size_bytes = Counter("clara_compress_bytes_written_total", "Bytes of finished shards")
        self._rejects = Counter("clara_compress_rejects_total", "Bad rows, which enter no shard")
        self._batch_s = Histogram(
            "clara_compress_batch_seconds", "Forward pass of a batch: the mean of each shard", boundaries=_SECONDS
        )
        self._shard_s = Histogram(
            "clara_compress_shard_seconds", "What a shard took, by phase", boundaries=_SECONDS, tag_keys=("phase",)
        )

    def rejects(self, n: int) -> None:
        if n:
            self._rejects.inc(n)

    def shard(self, shard: FinishedShard) -> None:
        """Count a shard, unless an earlier job had made it."""
        cost = shard.cost
        if cost is None:
            return
        self._documents.inc(shard.info.documents)
        self._tokens.inc(cost.n_tokens)
        self._size_bytes.inc(shard.info.size_bytes)
        self._batch_s.observe(cost.compute_s / cost.n_batches)
        for phase, seconds in (("read", cost.read_s), ("compute", cost.compute_s), ("write", cost.write_s)):
            self._shard_s.observe(seconds, tags={"phase": phase})
