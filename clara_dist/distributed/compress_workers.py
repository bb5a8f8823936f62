"""What runs on the workers of a compression job. Plain picklable classes; nothing here knows of Ray."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from clara_dist.config.compress import CompressConfig
from clara_dist.data.corpus import read_unit
from clara_dist.data.documents import Document
from clara_dist.data.streams import KeptFile
from clara_dist.distributed.compress_scan import MetadataCheck, UnitWork
from clara_dist.distributed.models import load_model
from clara_dist.errors import ClusterError, DataError
from clara_dist.inference.compressor import DocumentCompressor
from clara_dist.inference.passages import Passage, PassageSplitter
from clara_dist.model.identity import quantization_identity
from clara_dist.model.tokens import EncodedText
from clara_dist.store.draft import ShardDraft
from clara_dist.store.fingerprint import Fingerprint
from clara_dist.store.manifest import ShardInfo, shard_file
from clara_dist.store.passages import passage_id
from clara_dist.store.schema import StoreSchema
from clara_dist.store.storage import open_storage
from clara_dist.store.writer import describe_shard, publish_shard


@dataclass(frozen=True)
class ShardWork:
    """One shard to make.

    Attributes:
        work: The unit that it is made of.
        name: Decided by the documents and the model alone, so making it twice makes the same file.
        n_documents: What the scan counted.
    """

    work: UnitWork
    name: str
    n_documents: int

    def __str__(self) -> str:
        return f"{self.work.unit} (shard {self.name})"


@dataclass(frozen=True)
class ShardCost:
    """What a shard took.

    Attributes:
        n_tokens: Tokens that the model read, memory tokens included.
        n_batches: Forward passes.
        read_s: Reading, tokenising and laying out the file.
        compute_s: All forward passes.
        write_s: Checking, hashing and publishing.
    """

    n_tokens: int
    n_batches: int
    read_s: float
    compute_s: float
    write_s: float


@dataclass(frozen=True)
class FinishedShard:
    """A shard in place, and what it took; None if it was there."""

    info: ShardInfo
    cost: ShardCost | None


@dataclass(frozen=True)
class ModelIdentity:
    """What the store must know of the model."""

    fingerprint: Fingerprint
    n_memory_tokens: int
    hidden_size: int

    def schema(self, config: CompressConfig) -> StoreSchema:
        """Shape of the rows that the job writes."""
        return StoreSchema(self.n_memory_tokens, self.hidden_size, config.metadata_columns)


def shard_name(fingerprint: Fingerprint, config: CompressConfig, work: UnitWork) -> str:
    """A name that is the same if and only if the shard's content is, up to rounding."""
    content = [
        fingerprint.digest,
        config.dtype,
        list(config.metadata_columns.items()),
        ["split", config.passage_overlap_tokens] if config.long_documents == "split" else "truncate",
        work.unit.identity,
        work.duplicates,
    ]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def identify_model(config: CompressConfig) -> ModelIdentity:
    """Load the model on a CPU and say what it is. A worker does this: the driver's node may be too small for it."""
    # What only a GPU can load is left out; of that, quantisation alone is part of what the model is.
    clara = load_model(config.model_copy(update={"attn_implementation": None, "quantization": None}), "cpu")
    fields = clara.fingerprint_fields() | quantization_identity(config.quantization)
    return ModelIdentity(Fingerprint(fields), clara.n_memory_tokens, clara.hidden_size)


class ShardCompressor:
    """Makes one shard of one unit.

    Two threads may call it: while one runs the model, the other publishes the shard before and reads and tokenises the
    one after. So the model never waits for the disk or the tokenizer, and no more than two shards are in memory.

    Args:
        config: The job.
        identity: The model's, as the driver knows it.
        device: Where the model runs.
    """

    def __init__(self, config: CompressConfig, identity: ModelIdentity, device: str) -> None:
        self.config = config
        self.identity = identity
        self.device = device
        self.schema = identity.schema(config)
        self._reading = threading.Lock()
        self._kept = KeptFile()
        self._computing = threading.Lock()

    def __call__(self, task: ShardWork) -> FinishedShard:
        """Make the shard, unless a worker has made it that was lost before it could say so."""
        if open_storage(self.config.store).size_bytes(shard_file(task.name)) is None:
            return self._make(task)
        return FinishedShard(describe_shard(self.config.store, self.schema, task.name), None)

    @cached_property
    def compressor(self) -> DocumentCompressor:
        """Loaded when the first shard needs it: a job that finds every shard finished loads no model."""
        if self.device == "cpu":
            torch.set_num_threads(max(1, int(self.config.cpus_per_worker)))
        clara = load_model(self.config, self.device)
        compressor = DocumentCompressor(clara, self.config.max_batch_tokens)
        self.identity.fingerprint.require_match(compressor.fingerprint, "this job", "the model that this worker sees")
        return compressor

    @cached_property
    def _splitter(self) -> PassageSplitter:
        tokenizer = self.compressor.clara.tokenizer
        return PassageSplitter(tokenizer, self.config.overlap_tokens(tokenizer.config.doc_max_tokens))

    def _make(self, task: ShardWork) -> FinishedShard:
        with self._reading:
            compressor = self.compressor
            started = time.monotonic()
            encoded, draft = self._lay_out(task)
            read_s = time.monotonic() - started
        with self._computing:
            started = time.monotonic()
            try:
                n_batches = compressor.encode(encoded, draft.memory_SMD)
            except torch.OutOfMemoryError as error:
                raise ClusterError(
                    "the GPU's memory is too small for a batch", got=error, hint="lower max_batch_tokens"
                ) from error
            compute_s = time.monotonic() - started
        started = time.monotonic()
        info = publish_shard(self.config.store, draft.finish(), task.name)
        n_tokens = sum(len(text.ids) for text in encoded)
        return FinishedShard(info, ShardCost(n_tokens, n_batches, read_s, compute_s, time.monotonic() - started))

    def _lay_out(self, task: ShardWork) -> tuple[list[EncodedText], ShardDraft]:
        rows = [
            (document, passage, number if len(passages) > 1 else None)
            for document, passages in self._passages(self._read(task))
            for number, passage in enumerate(passages, 1)
        ]
        encoded = [passage.encoded for _, passage, _ in rows]
        table = self.schema.to_table(
            doc_ids=[passage_id(doc.doc_id, number) if number else doc.doc_id for doc, _, number in rows],
            parent_ids=[document.doc_id for document, _, _ in rows],
            titles=[passage.title for _, passage, _ in rows],
            texts=[passage.text for _, passage, _ in rows],
            metadata=[document.metadata for document, _, _ in rows],
            memory_SMD=None,
            n_tokens=[text.n_tokens for text in encoded],
            truncated=[text.truncated for text in encoded],
        )
        return encoded, ShardDraft(table, self.schema)

    def _passages(self, documents: Sequence[Document]) -> Iterator[tuple[Document, list[Passage]]]:
        texts = [(document.title, document.text) for document in documents]
        if self.config.long_documents == "split":
            return zip(documents, self._splitter.split(texts), strict=True)
        encoded = self.compressor.tokenize(texts)
        whole = [[Passage(*text, ids)] for text, ids in zip(texts, encoded, strict=True)]
        return zip(documents, whole, strict=True)

    def _read(self, task: ShardWork) -> list[Document]:
        unit = task.work.unit
        refuse = MetadataCheck(self.config.metadata_columns)
        items = read_unit(unit, task.work.duplicates, refuse=refuse, kept=self._kept)
        documents = [item for item in items if isinstance(item, Document)]
        if len(documents) != task.n_documents:
            raise DataError(
                f"{unit.path} gives other documents than when it was scanned, from row {unit.first_line} on",
                got=f"{len(documents)} documents",
                expected=task.n_documents,
                hint="run the command again on a corpus that stays as it is",
            )
        return documents
