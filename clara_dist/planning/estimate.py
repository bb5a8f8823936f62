"""From a model, a number of passages and a GPU to hours, bytes and dollars."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from clara_dist.errors import ConfigError
from clara_dist.planning.gpus import GpuKind
from clara_dist.planning.shapes import ModelShape

# What the project aims at on a GPU; a plan that rests on it says so.
GOAL_UTILIZATION = 0.6
_BYTES_PER_TOKEN = 4  # of English text in vocabularies of 32,000 and more
_ROW_BYTES = 64  # id, offsets, norm, number of tokens
_ID_BYTES = 8  # of an index
_LOAD_BYTES_PER_S = 1e9
_PROCESS_START_S = 30.0


@dataclass(frozen=True)
class Lengths:
    """How long texts are.

    Attributes:
        shares: Pairs of tokens the compressor reads of a text (frame tokens included, memory tokens not) and the share
            of texts that have so many.
        bytes_per_text: Mean size of text, title, id and metadata in the store.
    """

    shares: tuple[tuple[float, float], ...]
    bytes_per_text: float

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """``256``, or tokens with shares: ``64:0.2,128:0.5,256:0.3``.

        Raises:
            ConfigError: It is neither.
        """
        try:
            parts = [part if ":" in part else f"{part}:1" for part in text.split(",")]
            pairs = [(float(tokens), float(share)) for tokens, share in (part.split(":") for part in parts)]
            total = sum(share for _, share in pairs)
            if not all(tokens > 0 and share > 0 for tokens, share in pairs):
                raise ValueError("every number must be positive")
        except ValueError as error:
            raise ConfigError(
                "cannot read the lengths", got=f"{text!r}: {error}", expected="256, or 64:0.2,128:0.5,256:0.3"
            ) from error
        shares = tuple((tokens, share / total) for tokens, share in pairs)
        return cls(shares, _BYTES_PER_TOKEN * sum(tokens * share for tokens, share in shares))

    @property
    def mean(self) -> float:
        return sum(tokens * share for tokens, share in self.shares)


@dataclass(frozen=True)
class Workload:
    """What is to be compressed: S passages into M memory tokens each."""

    shape: ModelShape
    n_passages: int
    n_memory_tokens: int
    lengths: Lengths

    @property
    def flops_per_document(self) -> float:
        """Mean over the lengths; a text's memory tokens are part of what the model reads."""
        m = self.n_memory_tokens
        return sum(share * self.shape.flops(tokens + m) for tokens, share in self.lengths.shares)


@dataclass(frozen=True)
class Calibration:
    """What `clara-dist bench compress` measured.

    Attributes:
        device: Where.
        flops_per_s: Of a worker, over the whole road from corpus to store, start-up apart.
        utilization: That over the matrix peak measured in the same run; None if no peak was measured.
        startup_s: Of the job before its first shard: processes, scan, models.
    """

    device: str
    flops_per_s: float
    utilization: float | None
    startup_s: float

    @classmethod
    def from_file(cls, path: str | Path) -> Calibration:
        """Read a benchmark's JSON.

        Raises:
            ConfigError: It is none.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))["calibration"]
            return cls(
                str(found["device"]),
                float(found["flops_per_s"]),
                None if found["utilization"] is None else float(found["utilization"]),
                float(found["startup_s"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} is no result of `clara-dist bench compress`", got=f"{type(error).__name__}: {error}"
            ) from error


@dataclass(frozen=True)
class Plan:
    """What a compression will take; bytes are decimal, costs US dollars.

    Attributes:
        flops_per_document: Mean.
        documents_per_s: Of one worker.
        rate_source: Where the speed of a worker comes from.
        worker_hours: Compute of all workers together, start-up apart.
        wall_hours: Of ``n_workers``, start-up included.
        memory_size_bytes: Memories in the store.
        text_size_bytes: Texts, titles, ids and metadata in the store.
        index_size_bytes: Of an approximate index: one byte for each of D components, and an id; exact search has none.
        read_bytes: The corpus, which is read three times (plan, scan, compress), and the model, which every worker
            loads.
        written_bytes: The store.
        network_bits_per_s: Mean of reading and writing together while it runs.
        compute_cost: Worker hours and start-up, where the price of an hour is known.
        storage_cost_per_month: The store and the index.
    """

    flops_per_document: float
    documents_per_s: float
    rate_source: str
    n_workers: int
    worker_hours: float
    wall_hours: float
    memory_size_bytes: float
    text_size_bytes: float
    index_size_bytes: float
    read_bytes: float
    written_bytes: float
    network_bits_per_s: float
    compute_cost: float | None
    storage_cost_per_month: float

    def to_json(self) -> str:
        """All figures as one JSON object."""
        return json.dumps(asdict(self), indent=2)


def estimate(
    work: Workload,
    *,
    n_workers: int = 1,
    gpu: GpuKind | None = None,
    calibration: Calibration | None = None,
    utilization: float | None = None,
    cost_per_hour: float | None = None,
    storage_cost_per_gb_month: float = 0.023,
) -> Plan:
    """Plan a compression.

    With S passages, F operations a document, R operations a second of a worker, N workers and M memory tokens of D
    components::

        R             = utilization * peak of the GPU, or what was measured
        worker hours  = S * F / R / 3600
        wall hours    = worker hours / N + start-up
        store         = S * (M * D * 2 + bytes of a text + 64)
        index         = S * (D + 8)
        read          = 3 * corpus + N * weights in bf16
        cost          = (worker hours + N * start-up) * dollars an hour

    Args:
        work: What is compressed.
        n_workers: Each with a GPU of its own.
        gpu: Its kind. With a calibration on a GPU, that one's utilization is applied to this kind's peak.
        calibration: A measurement. Without ``gpu`` its rate holds: same machine, a model of similar shape.
        utilization: Share of the peak; beats the calibration's.
        cost_per_hour: Of a worker; None takes the GPU's.
        storage_cost_per_gb_month: The default is that of S3 Standard.

    Raises:
        ConfigError: Neither ``gpu`` nor ``calibration``, a calibration that says nothing of GPUs, or a model that does
            not fit the GPU.
    """
    rate, source = _rate(gpu, calibration, utilization)
    weights_bytes = 2 * (work.shape.body_parameters + work.shape.embedding_parameters)
    if gpu is not None and weights_bytes > 0.9 * gpu.memory_bytes:
        raise ConfigError(
            f"the model does not fit one {gpu.name}", got=f"{weights_bytes / 1e9:.0f} GB of weights in bf16"
        )
    flops, s, d = work.flops_per_document, work.n_passages, work.shape.hidden_size
    startup_s = calibration.startup_s if calibration else _PROCESS_START_S + weights_bytes / _LOAD_BYTES_PER_S
    worker_s = s * flops / rate
    wall_s = worker_s / n_workers + startup_s
    memory = s * work.n_memory_tokens * d * 2.0
    text = s * (work.lengths.bytes_per_text + _ROW_BYTES)
    index = s * (d + _ID_BYTES)
    read = 3 * s * work.lengths.bytes_per_text + n_workers * weights_bytes
    hourly = cost_per_hour if cost_per_hour is not None else (gpu.cost_per_hour if gpu else None)
    return Plan(
        flops_per_document=flops,
        documents_per_s=rate / flops,
        rate_source=source,
        n_workers=n_workers,
        worker_hours=worker_s / 3600,
        wall_hours=wall_s / 3600,
        memory_size_bytes=memory,
        text_size_bytes=text,
        index_size_bytes=index,
        read_bytes=read,
        written_bytes=memory + text,
        network_bits_per_s=8 * (read + memory + text) / wall_s,
        compute_cost=None if hourly is None else hourly * (worker_s + n_workers * startup_s) / 3600,
        storage_cost_per_month=storage_cost_per_gb_month * (memory + text + index) / 1e9,
    )


def _rate(gpu: GpuKind | None, calibration: Calibration | None, utilization: float | None) -> tuple[float, str]:
    if gpu is None:
        if calibration is None:
            raise ConfigError("a plan needs a GPU's name or a measurement", hint="name --gpu or --calibration")
        return calibration.flops_per_s, f"measured on {calibration.device}"
    if utilization is not None:
        return utilization * gpu.peak_flops_per_s, f"{utilization:.0%} of the {gpu.name}'s peak, as given"
    if calibration is None:
        return GOAL_UTILIZATION * gpu.peak_flops_per_s, f"{GOAL_UTILIZATION:.0%} of the {gpu.name}'s peak, assumed"
    if calibration.utilization is None or calibration.device == "cpu":
        raise ConfigError(
            "this measurement says nothing of GPUs", got=calibration.device, hint="measure on a GPU, or leave out --gpu"
        )
    share = calibration.utilization
    return share * gpu.peak_flops_per_s, f"{share:.0%} of the {gpu.name}'s peak, as measured on {calibration.device}"
