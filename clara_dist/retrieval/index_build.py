"""Building an index: train a codec on a sample, encode every shard that has no codes yet, measure against exact search.

Every finished step is in the store: a build that was killed goes on where it was, and one of a later version of the
store encodes only the shards that are new.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from clara_dist.config.index import IndexConfig
from clara_dist.errors import RetrievalError
from clara_dist.retrieval.index import load_codec, load_index, probe_an_eighth, require_faiss, row_bytes
from clara_dist.retrieval.search import ExactSearcher
from clara_dist.store.index_manifest import (
    IndexFile,
    IndexManifest,
    Measured,
    indexed_versions,
    publish_index_file,
    publish_index_manifest,
    read_index_file,
    read_index_manifest,
)
from clara_dist.store.manifest import kept_versions, read_manifest
from clara_dist.store.reader import MemoryStore
from clara_dist.store.shard import Shard
from clara_dist.store.storage import Storage, open_storage

_SAMPLE_BYTES = 1 << 30
_SAMPLE_ROWS = 65_536
_ENCODE_BYTES = 64 << 20
Progress = Callable[[str], None]


def build_index(
    config: IndexConfig,
    query_QX: np.ndarray | None = None,
    progress: Progress = print,
) -> IndexManifest:
    """Build or complete the index of a store version.

    Args:
        config: Which store, and how.
        query_QX: Queries to measure with; None takes memories of the store.
        progress: Is told of every finished step.

    Raises:
        RetrievalError: The store is too small, the factory string is none that can be stored, or the index found less
            than ``config.min_recall`` of what an exact search finds; then it is not used.
        StoreError, CorruptStoreError: The store, or the index of an older version, cannot be read.
    """
    store = MemoryStore.open(config.store, config.store_version)
    storage = open_storage(config.store)
    earlier = None if config.retrain else _inherited(storage, store, config)
    if earlier is None:
        manifest = _trained(storage, store, config, progress)
    else:
        manifest = _wanted(earlier, store, config)
        if earlier.version != store.version:
            # `store gc` keeps the codes of the earlier version from now on, also if it gives that version up.
            publish_index_manifest(storage, manifest)
    codec = load_codec(read_index_file(storage, manifest.codec).to_pybytes())
    mean_X = np.frombuffer(read_index_file(storage, manifest.mean), np.float32)
    for number, shard in enumerate(store.shards, 1):
        if shard.info.rows and shard.info.file not in manifest.codes:
            codes = publish_index_file(storage, "codes", _encode(codec, mean_X, shard))
            manifest = replace(manifest, codes={**manifest.codes, shard.info.file: codes})
            publish_index_manifest(storage, manifest)
            progress(f"shard {number} of {len(store.shards)}: {shard.info.rows:,} rows, {codes.size_bytes:,} bytes")
    measured = _measure(store, manifest, config, query_QX)
    if measured.recall < config.min_recall:
        raise RetrievalError(
            f"the index finds too little of what an exact search of {measured.queries} finds: it is not taken into use",
            got=f"recall@{measured.k} {measured.recall:.4f}",
            expected=f"at least {config.min_recall} (min_recall)",
            hint="build it with a larger `--rescored`, or with `--retrain` and a finer `--factory`",
        )
    manifest = replace(manifest, measured=measured)
    publish_index_manifest(storage, manifest)
    return manifest


def default_factory(store: MemoryStore) -> str:
    """A projection to a twelfth of the memory's size, at most 512, and a byte a number: 1 byte for 24 of the store."""
    size = store.n_memory_tokens * store.hidden_size
    # A projection by principal components has no more dimensions than it was trained with rows.
    return f"PCA{max(2, min(size // 12, 512, store.n_documents - 1))},SQ8"


def _rescored(store: MemoryStore, config: IndexConfig) -> int:
    """A twentieth of the rows, at least 40 and at most 400."""
    return config.rescored or max(40, min(400, store.n_documents // 20))


def _inherited(storage: Storage, store: MemoryStore, config: IndexConfig) -> IndexManifest | None:
    """The index of this version, complete or not, or of the newest version before it, if it was made the same way."""
    kept = kept_versions(storage)
    for version in reversed(indexed_versions(storage)):
        found = read_index_manifest(storage, version) if version in kept and version <= store.version else None
        if (
            found is not None
            and found.commit_id == read_manifest(storage, version).commit_id
            and read_manifest(storage, version).fingerprint == store.fingerprint
            and config.factory in (None, found.factory)
        ):
            return found
    return None


def _wanted(manifest: IndexManifest, store: MemoryStore, config: IndexConfig) -> IndexManifest:
    """An index as this version's, without the codes that it does not need."""
    files = {shard.info.file for shard in store.shards}
    return replace(
        manifest,
        version=store.version,
        commit_id=store.manifest.commit_id,
        rescored=_rescored(store, config),
        codes={file: codes for file, codes in manifest.codes.items() if file in files},
        measured=None,
    )


def _trained(storage: Storage, store: MemoryStore, config: IndexConfig, progress: Progress) -> IndexManifest:
    faiss = require_faiss()
    if store.n_documents < 2 * config.k:
        raise RetrievalError(
            f"the store {store.url} is too small for an index",
            got=f"{store.n_documents} rows",
            expected=f"at least {2 * config.k}",
            hint="search it exactly: that is the default of every command",
        )
    size = store.n_memory_tokens * store.hidden_size
    n = min(store.n_documents, _SAMPLE_ROWS, max(1, _SAMPLE_BYTES // (4 * size)))
    rows_N = np.sort(np.random.default_rng(0).choice(store.n_documents, n, replace=False))
    unit_NX = _unit(store.take_memory(rows_N).reshape(n, -1))
    mean_X = unit_NX.mean(axis=0)
    factory = config.factory or default_factory(store)
    try:
        index = faiss.index_factory(size, factory, faiss.METRIC_L2)
        index.train(unit_NX - mean_X)
        probe_an_eighth(index)
        index.sa_encode(unit_NX[:1])
    except RuntimeError as error:
        raise RetrievalError(
            "FAISS cannot make, train or store such an index",
            got=f"{factory!r} for {n} vectors of size {size}: {str(error).rpartition('Error: ')[2]}",
            expected="a projection and a quantiser, perhaps with an inverted file: PCA64,SQ8 or OPQ16,IVF256,PQ16",
        ) from error
    manifest = IndexManifest(
        version=store.version,
        commit_id=store.manifest.commit_id,
        factory=factory,
        rescored=_rescored(store, config),
        codec=_publish(storage, "faiss", faiss.serialize_index(index)),
        mean=_publish(storage, "mean", mean_X),
    )
    publish_index_manifest(storage, manifest)
    progress(f"trained {factory} on {n:,} of {store.n_documents:,} rows")
    return manifest


def _publish(storage: Storage, kind: str, values: np.ndarray) -> IndexFile:
    return publish_index_file(storage, kind, values.tobytes())


def _encode(codec: object, mean_X: np.ndarray, shard: Shard) -> bytes:
    """Codes of all rows of a shard's file, deleted ones included: another version may have them."""
    n = shard.info.rows
    memory_SX = shard.memory_SMD.reshape(n, -1)
    step = max(1, _ENCODE_BYTES // (4 * memory_SX.shape[1]))
    parts = [
        codec.sa_encode(_unit(memory_SX[low : low + step]) - mean_X).tobytes()  # type: ignore[attr-defined]
        for low in range(0, n, step)
    ]
    return b"".join(parts)


def _unit(memory_NX: np.ndarray) -> np.ndarray:
    """float32 memories of length 1; one that is all zeros stays so."""
    wide_NX = memory_NX.astype(np.float32)
    norms_N1 = np.linalg.norm(wide_NX, axis=1, keepdims=True)
    return np.divide(wide_NX, norms_N1, out=wide_NX, where=norms_N1 > 0)


def _measure(store: MemoryStore, manifest: IndexManifest, config: IndexConfig, query_QX: np.ndarray | None) -> Measured:
    source = "the questions"
    if query_QX is None:
        source = "memories of the store"
        n = min(config.queries, store.n_documents)
        rows_Q = np.random.default_rng(1).choice(store.n_documents, n, replace=False)
        memory_QX = store.take_memory(np.sort(rows_Q)).reshape(n, -1).astype(np.float32)
        query_QX = memory_QX[np.abs(memory_QX).max(axis=1) > 0]
    query = torch.from_numpy(query_QX)
    searcher = load_index(store, manifest)
    k = min(config.k, store.n_documents)
    exact_QK = ExactSearcher(store).search(query, k).rows_BK
    found_QK = searcher.search(query, k).rows_BK
    hits = (found_QK[:, :, None] == exact_QK[:, None, :]).any(dim=1).double().mean().item()
    return Measured(
        recall=hits,
        k=k,
        n_queries=len(query),
        queries=source,
        bytes_per_query=searcher.bytes_per_query(query, k),
        exact_bytes=store.n_documents * row_bytes(store),
    )
