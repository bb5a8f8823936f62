"""A compression job: a corpus, a model, a store, and the workers between them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from clara_dist.config.base import Config
from clara_dist.config.model import Dtype

CorpusFormat = Literal["auto", "jsonl", "parquet", "beir", "clara"]
ColumnType = Literal["string", "int64", "float64", "bool"]


class CompressConfig(Config):
    """A corpus becomes a memory store.

    Attributes:
        corpus: Files, directories or globs, read in this order.
        format: How to read them; ``auto`` decides per file.
        model: Model directory. ``base_model`` overrides where its base LLM is.
        store: Where the store goes: a directory that every worker sees, or a URL.
        metadata_columns: Metadata fields that become typed columns, for filters.
        workers: Compressor actors; each has its own copy of the model.
        cpus_per_worker: CPUs and torch threads of an actor.
        device: ``auto`` takes one GPU per worker if the cluster has GPUs.
        dtype: The base LLM's type in memory; memories are stored as float16 in any case.
        max_batch_tokens: Tokens of one forward pass, padding included.
        rows_per_shard: Rows that one task reads, compresses and writes. At M = 16, D = 4096 a row takes 128 KiB.
        rejects: Where rejected rows are listed (jsonl); None means ``STORE.rejects.jsonl``.
        max_rejects: More rejected rows than this fail the job before anything is compressed: below 1 a fraction of all
            rows, from 1 on a count.
        overwrite: Write a new version of a store that holds another corpus or was made by another model. Without it
            such a store is left alone, with an error. An unfinished job is resumed either way.
    """

    corpus: tuple[str, ...] = Field(min_length=1)
    format: CorpusFormat = "auto"
    model: str
    base_model: str | None = None
    store: str
    metadata_columns: dict[str, ColumnType] = Field(default_factory=dict)
    workers: int = Field(1, ge=1)
    cpus_per_worker: int = Field(1, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Dtype = "float32"
    max_batch_tokens: int = Field(16_384, ge=1)
    rows_per_shard: int = Field(2048, ge=1)
    rejects: str | None = None
    max_rejects: float = Field(0.01, ge=0)
    overwrite: bool = False

    @property
    def rejects_path(self) -> str:
        return self.rejects or f"{self.store.rstrip('/')}.rejects.jsonl"

    def allowed_rejects(self, n_rows: int) -> int:
        """How many of ``n_rows`` rows may be rejected."""
        return int(self.max_rejects * n_rows if self.max_rejects < 1 else self.max_rejects)
