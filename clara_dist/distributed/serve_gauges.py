"""What engine and retriever replicas tell Prometheus, through Ray's own exporter (``ray_clara_...`` on their nodes).

Replicas of a deployment are told apart by the labels that Serve adds. They report when Serve asks for their health,
every 10 s. What a request took is in `serve_metrics`; how long a shard was searched and what waits for a replica Serve
itself exports (``ray_serve_deployment_processing_latency_ms``, ``ray_serve_deployment_queued_queries``).
"""

from __future__ import annotations

from ray.serve.metrics import Counter, Gauge

from clara_dist.inference.engine import EngineStats
from clara_dist.store.cache import CacheCounts


class EngineMetrics:
    """Of one engine replica."""

    def __init__(self) -> None:
        self._running = Gauge("clara_engine_running", "Answers that are decoded together: the batch size")
        self._waiting = Gauge("clara_engine_waiting", "Answers that wait for a place in the batch")
        self._gpu_memory = Gauge(
            "clara_engine_gpu_memory_bytes", "Taken of the engine's GPU, whoever took it; 0: a CPU"
        )
        self._prompt_tokens = _Total("clara_engine_prompt_tokens_total", "Read, memory tokens included")
        self._completion_tokens = _Total("clara_engine_completion_tokens_total", "Computed, of unfinished answers too")

    def observe(self, stats: EngineStats, gpu_memory_bytes: int) -> None:
        self._running.set(stats.running)
        self._waiting.set(stats.waiting)
        self._gpu_memory.set(gpu_memory_bytes)
        self._prompt_tokens.reach(stats.prompt_tokens)
        self._completion_tokens.reach(stats.completion_tokens)


class RetrieverMetrics:
    """Of one retriever replica: what the cache of remote shards did for its process."""

    def __init__(self) -> None:
        self._hits = _Total("clara_cache_hits_total", "Shards of remote stores that were on this machine")
        self._misses = _Total("clara_cache_misses_total", "Shards of remote stores that had to be downloaded")

    def observe(self, counts: CacheCounts) -> None:
        self._hits.reach(counts.hits)
        self._misses.reach(counts.misses)


class _Total:
    """A counter that follows a total which somebody else counts."""

    def __init__(self, name: str, text: str) -> None:
        self._counter = Counter(name, text)
        self._value = 0

    def reach(self, value: int) -> None:
        # Ray's counters do not take 0.
        if value > self._value:
            self._counter.inc(value - self._value)
            self._value = value
