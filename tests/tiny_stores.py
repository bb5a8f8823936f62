"""Small memory stores with known contents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clara_dist.store import Fingerprint, Manifest, MemoryStore, ShardInfo, StoreSchema, commit, write_shard

FINGERPRINT = Fingerprint({"base": "b1", "compressor": "c1", "tokenizer": "t1"})


def random_memory(n: int, m: int = 2, d: int = 8, seed: int = 0) -> np.ndarray:
    """float16 memories whose lengths differ, so that a search that forgets the norms ranks wrongly."""
    generator = np.random.default_rng(seed)
    scale = generator.uniform(0.1, 10, (n, 1, 1))
    return (generator.standard_normal((n, m, d)) * scale).astype(np.float16)


def write_rows(
    path: Path,
    name: str,
    memory_SMD: np.ndarray,
    *,
    first: int = 0,
    doc_ids: Sequence[str] | None = None,
    metadata: Sequence[dict[str, Any]] | None = None,
    schema: StoreSchema | None = None,
    parent_ids: Sequence[str] | None = None,
) -> ShardInfo:
    """Write one shard; document i of the store is ``doc-i``, whatever shard it is in."""
    n = len(memory_SMD)
    numbers = range(first, first + n)
    schema = schema or StoreSchema(*memory_SMD.shape[1:])
    table = schema.to_table(
        doc_ids=doc_ids or [f"doc-{i}" for i in numbers],
        titles=[f"Title {i}" for i in numbers],
        texts=[f"Text of document {i}: naïve ☃" for i in numbers],
        metadata=metadata or [{"number": i} for i in numbers],
        memory_SMD=memory_SMD,
        n_tokens=[i + 3 for i in numbers],
        truncated=[i % 3 == 0 for i in numbers],
        parent_ids=parent_ids,
    )
    return write_shard(path, table, name)


def build_store(
    path: Path,
    memory_SMD: np.ndarray,
    shard_rows: Sequence[int] | None = None,
    *,
    metadata: Sequence[dict[str, Any]] | None = None,
    metadata_columns: dict[str, str] | None = None,
) -> Manifest:
    """A store of the given memories, cut into shards of the given sizes."""
    schema = StoreSchema(*memory_SMD.shape[1:], metadata_columns or {})
    infos = []
    start = 0
    for index, rows in enumerate(shard_rows if shard_rows is not None else [len(memory_SMD)]):
        part = slice(start, start + rows)
        infos.append(
            write_rows(
                path,
                f"unit-{index:05d}",
                memory_SMD[part],
                first=start,
                metadata=metadata[part] if metadata else None,
                schema=schema,
            )
        )
        start += rows
    assert start == len(memory_SMD)
    return commit(path, schema, FINGERPRINT, infos)


def open_store(
    path: Path, memory_SMD: np.ndarray, shard_rows: Sequence[int] | None = None, **options: Any
) -> MemoryStore:
    """`build_store`, opened."""
    build_store(path, memory_SMD, shard_rows, **options)
    return MemoryStore.open(path)
