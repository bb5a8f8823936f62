"""A compression job: a corpus, a model, a store, and the workers between them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from clara_dist.config.corpus import SurveyedCorpusConfig, beside, parse_pairs
from clara_dist.config.model import Attention, Dtype, Quantization
from clara_dist.config.workers import WorkerRange
from clara_dist.errors import ConfigError

ColumnType = Literal["string", "int64", "float64", "bool"]

# About what English has in vocabularies of 32,000 and more.
_TEXT_BYTES_PER_TOKEN = 4
_OVERLAP_TOKENS = 32
# Small memories: a shard is also what a failure costs, and what the last worker is waited for.
_MAX_ROWS_PER_SHARD = 4096


def default_overlap_tokens(doc_max_tokens: int) -> int:
    """Tokens that neighbouring passages of a document share where nothing else is asked for."""
    return min(_OVERLAP_TOKENS, doc_max_tokens // 4)


class CompressConfig(SurveyedCorpusConfig):
    """A corpus becomes a memory store; for the fields of the corpus see `SurveyedCorpusConfig`.

    Attributes:
        model: Model directory. ``base_model`` overrides where its base LLM is.
        store: Where the store goes: a directory that every worker sees, or a URL.
        metadata_columns: Metadata that becomes typed columns, for filters; also written ``year:int64``. One that is in
            neither the row's metadata nor ``metadata_fields`` is looked for at the top of the row.
        address: Ray cluster, see `session.connect`; None asks ``RAY_ADDRESS``, else starts a local Ray.
        workers: Compressor actors, ``4`` or ``1:8``; each has its own copy of the model.
        cpus_per_worker: CPUs of an actor; its torch threads if it computes on them.
        gpus_per_worker: GPUs of an actor that computes on one; 0.5 puts two actors on each.
        device: ``auto`` takes GPUs if the cluster has any.
        dtype: The base LLM's type in memory; memories are stored as float16 in any case.
        attn_implementation: None: FlashAttention 2 on a GPU in half precision where it is installed, else SDPA.
        quantization: Keep the base LLM in 8 or 4 bits (bitsandbytes, on a GPU); only a model loaded so reads the store.
        max_batch_tokens: Tokens of one forward pass, padding included; None: 16,384 on a GPU, 1,024 on a CPU.
        long_documents: What becomes of documents longer than the model's ``doc_max_tokens``: ``split`` makes passages
            of them, rows ``DOC_ID#1``, ``DOC_ID#2``, ... with the document's id as ``parent_id``; ``truncate`` drops
            their ends, and marks the rows.
        passage_overlap_tokens: Tokens that a passage shares with the one before; None: 32, or a quarter of
            ``doc_max_tokens`` if that is less.
        shard_size_bytes: About the size of a shard, which is what one task reads, compresses and writes.
        rows_per_shard: Rows of the corpus in a shard, fewer where they are long; None follows from
            ``shard_size_bytes``.
        overwrite: Write a new version of a store that holds another corpus or was made by another model. Without it
            such a store is left alone, with an error. An unfinished job is resumed either way.
        append: Add the corpus to what the store holds, in a new version; a store that does not exist is made.
        on_existing: With ``append``, what becomes of a document whose id is in the store: ``error`` adds nothing,
            ``skip`` keeps the stored one, ``replace`` takes the new one.
    """

    model: str
    base_model: str | None = None
    store: str
    metadata_columns: dict[str, ColumnType] = Field(default_factory=dict)
    address: str | None = None
    workers: WorkerRange = WorkerRange(least=1, most=1)
    cpus_per_worker: float = Field(1, gt=0)
    # More than one would be idle: a model runs on one GPU.
    gpus_per_worker: float = Field(1, gt=0, le=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Dtype = "float32"
    attn_implementation: Attention | None = None
    quantization: Quantization | None = None
    max_batch_tokens: int | None = Field(None, ge=1)
    long_documents: Literal["split", "truncate"] = "split"
    passage_overlap_tokens: int | None = Field(None, ge=0)
    shard_size_bytes: int = Field(256 << 20, ge=1)
    rows_per_shard: int | None = Field(None, ge=1)
    overwrite: bool = False
    append: bool = False
    on_existing: Literal["error", "skip", "replace"] = "error"

    @model_validator(mode="after")
    def _adds_or_replaces(self) -> CompressConfig:
        if self.append and self.overwrite:
            raise ValueError("append adds to what overwrite replaces: choose one")
        return self

    @field_validator("metadata_columns", mode="before")
    @classmethod
    def _parse_columns(cls, value: Any) -> Any:
        return value if isinstance(value, dict) else parse_pairs(value, ":")

    @property
    def rejects_path(self) -> str:
        return self.rejects or beside(self.store, ".rejects.jsonl")

    def shard_bounds(self, memory_size_bytes: int, doc_max_tokens: int) -> tuple[int, int]:
        """Rows of the corpus in a shard, and bytes of text; the one that is reached first ends it.

        They depend on the model alone, so that a job that resumes cuts alike. Long documents become passages of about
        ``doc_max_tokens``, so the text of as many passages as there may be rows makes as large a shard.

        Args:
            memory_size_bytes: Of one passage: M * D * 2.
            doc_max_tokens: For the size of a text, of which most fit into what the model reads.
        """
        text_size_bytes = _TEXT_BYTES_PER_TOKEN * doc_max_tokens
        passages = max(self.shard_size_bytes // (memory_size_bytes + text_size_bytes), 1)
        return self.rows_per_shard or min(passages, _MAX_ROWS_PER_SHARD), passages * text_size_bytes

    def overlap_tokens(self, doc_max_tokens: int) -> int:
        """Tokens that neighbouring passages of a document share.

        Raises:
            ConfigError: They are more than half of what the model reads.
        """
        overlap = self.passage_overlap_tokens
        if overlap is None:
            return default_overlap_tokens(doc_max_tokens)
        if 2 * overlap > doc_max_tokens:
            raise ConfigError(
                "passages share too much of their text",
                got=f"passage_overlap_tokens {overlap}",
                expected=f"at most {doc_max_tokens // 2}, half of the model's doc_max_tokens",
            )
        return overlap
