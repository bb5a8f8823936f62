"""A memory store from documents in memory: the compression job in one process, shard after shard."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from clara_dist.errors import DataError
from clara_dist.inference.compressor import DocumentCompressor
from clara_dist.inference.passages import Passage, PassageSplitter
from clara_dist.store.manifest import ShardInfo
from clara_dist.store.passages import passage_id
from clara_dist.store.reader import MemoryStore
from clara_dist.store.schema import StoreSchema
from clara_dist.store.storage import StoreLocation
from clara_dist.store.writer import commit, write_shard

_DOCUMENTS_PER_SHARD = 1024
_FIELDS = frozenset({"doc_id", "title", "text", "metadata"})


def build_store(
    compressor: DocumentCompressor,
    documents: Iterable[str | Mapping[str, Any]],
    store: StoreLocation,
    *,
    metadata_columns: Mapping[str, str],
    overlap_tokens: int,
) -> MemoryStore:
    """See `Clara.build_store`."""
    clara = compressor.clara
    schema = StoreSchema(clara.n_memory_tokens, clara.hidden_size, dict(metadata_columns))
    splitter = PassageSplitter(clara.tokenizer, overlap_tokens)
    rows = enumerate(documents)
    shards: list[ShardInfo] = []
    while chunk := [_document(number, document) for number, document in islice(rows, _DOCUMENTS_PER_SHARD)]:
        shards.append(write_documents(compressor, splitter, schema, store, chunk))
    if not shards:
        raise DataError("there are no documents to make a store of")
    commit(store, schema, compressor.fingerprint, shards)
    return MemoryStore.open(store)


def write_documents(
    compressor: DocumentCompressor,
    splitter: PassageSplitter,
    schema: StoreSchema,
    store: StoreLocation,
    documents: Sequence[Mapping[str, Any]],
) -> ShardInfo:
    """Compress documents into one shard, which no version of the store lists yet.

    Args:
        compressor: Of the store's model.
        splitter: Splits what is longer than the compressor reads.
        schema: The store's.
        store: Its path or URL.
        documents: With ``doc_id``, ``title``, ``text`` and ``metadata``, at least one.

    Raises:
        StoreError: A ``doc_id`` is bad or comes twice, metadata does not fit its column, or a memory does not fit
            float16.
    """
    passages = splitter.split([(document["title"], document["text"]) for document in documents])
    return _write(compressor, schema, store, list(_rows(documents, passages)))


def _document(number: int, document: str | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(document, str):
        document = {"text": document}
    unknown = sorted(set(document) - _FIELDS)
    text = document.get("text")
    if unknown or not isinstance(text, str) or not text.strip():
        raise DataError(
            f"document {number} cannot be used",
            got=f"unknown fields {unknown}" if unknown else f"text {text!r}",
            expected="a text, or a mapping with text and perhaps doc_id, title, metadata",
        )
    return {"doc_id": str(number), "title": "", "metadata": {}, **document}


def _rows(
    documents: Sequence[Mapping[str, Any]], passages: list[list[Passage]]
) -> Iterator[tuple[str, str, Passage, Mapping[str, Any]]]:
    """(doc_id, parent_id, passage, metadata) of every row."""
    for document, parts in zip(documents, passages, strict=True):
        parent_id = document["doc_id"]
        for number, passage in enumerate(parts, start=1):
            doc_id = parent_id if len(parts) == 1 else passage_id(parent_id, number)
            yield doc_id, parent_id, passage, document["metadata"]


def _write(
    compressor: DocumentCompressor,
    schema: StoreSchema,
    store: StoreLocation,
    rows: list[tuple[str, str, Passage, Mapping[str, Any]]],
) -> ShardInfo:
    encoded = [passage.encoded for _, _, passage, _ in rows]
    memory_SMD = np.empty((len(rows), schema.n_memory_tokens, schema.hidden_size), np.float16)
    compressor.encode(encoded, memory_SMD)
    table = schema.to_table(
        doc_ids=[doc_id for doc_id, _, _, _ in rows],
        parent_ids=[parent_id for _, parent_id, _, _ in rows],
        titles=[passage.title for _, _, passage, _ in rows],
        texts=[passage.text for _, _, passage, _ in rows],
        metadata=[metadata for _, _, _, metadata in rows],
        memory_SMD=memory_SMD,
        n_tokens=[e.n_tokens for e in encoded],
        truncated=[e.truncated for e in encoded],
    )
    return write_shard(store, table, uuid.uuid4().hex)
