"""Approximate search: small codes of all memories choose a few hundred rows, whose exact scores decide.

A code is made by FAISS: of the memory at unit length, less the mean, projected and quantised as an index-factory string
says. Codes are compared by Euclidean distance, which ranks vectors of length 1 as the cosine does, wherever the origin
lies. Inner products do not: memories of one model may all have cosines above 0.999 with each other; then what tells
them apart lies in the short vectors that remain without the mean, and the mean's own part of a product drowns it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from clara_dist.errors import ConfigError, CorruptStoreError, RetrievalError
from clara_dist.retrieval.search import ExactSearcher, SearchResult
from clara_dist.store.index_manifest import IndexManifest, read_index_file, read_index_manifest
from clara_dist.store.reader import MemoryStore
from clara_dist.store.storage import open_storage


class IndexedSearcher:
    """Cosine search by an index; `search` is that of `ExactSearcher`, and so are its scores. Picklable.

    Rows that are deleted or not searched are not in it at all, so a filter costs no recall.

    Args:
        store: The store.
        manifest: Its index.
        codec: The trained FAISS index, without rows; it is filled here.
        mean_X: float32 mean of the unit memories.
        codes_NC: uint8 codes of all rows of the store, in their order.
        rows: Search these rows only, such as `MemoryStore.rows_where` gives; None means all.
    """

    def __init__(
        self,
        store: MemoryStore,
        manifest: IndexManifest,
        codec: bytes,
        mean_X: np.ndarray,
        codes_NC: np.ndarray,
        rows: np.ndarray | None = None,
    ) -> None:
        self.store = store
        self.manifest = manifest
        self._rows = None if rows is None else np.unique(np.asarray(rows, np.int64))
        # Its check of the rows, and the search of so few that no index is worth while.
        self._exact = ExactSearcher(store, self._rows)
        self._mean_X = mean_X
        self._index = load_codec(codec)
        add_codes(self._index, codes_NC if self._rows is None else codes_NC[self._rows])

    def __reduce__(self) -> tuple[Any, ...]:
        return open_index, (self.store, self._rows)

    @property
    def n_rows(self) -> int:
        """Number of rows that are searched."""
        return self._exact.n_rows

    def search(self, query_BX: Tensor | np.ndarray, k: int) -> SearchResult:
        """As `ExactSearcher.search`, but a row that should be among the best k is sometimes missing.

        Of few rows, at most those that would be scored exactly anyway, the result is exact.

        Raises:
            RetrievalError, CorruptStoreError: As `ExactSearcher.search`.
        """
        candidates = max(self.manifest.rescored, 2 * k)
        query_BX = torch.as_tensor(query_BX)
        if k < 1 or self.n_rows <= candidates or query_BX.ndim < 2 or not len(query_BX):
            return self._exact.search(query_BX, k)  # which refuses what is wrong
        results = []
        for query_1X, rows_C in zip(query_BX.split(1), self.candidates(query_BX, candidates), strict=True):
            # Lists of an inverted file may hold fewer rows than were asked for.
            searcher = ExactSearcher(self.store, rows_C) if len(rows_C) >= k else self._exact
            results.append(searcher.search(query_1X, k))
        return SearchResult(
            torch.cat([found.rows_BK for found in results]), torch.cat([found.scores_BK for found in results])
        )

    def candidates(self, query_BX: Tensor, n: int) -> list[np.ndarray]:
        """Rows of the ``n`` best codes of each query, int64, in no order; fewer where the index finds fewer."""
        vectors = query_BX.detach().cpu().float().flatten(1)
        if vectors.shape[1] != self._index.d or not vectors.isfinite().all():
            self._exact.search(query_BX, 1)  # raises
        _, places_BN = self._index.search(torch.nn.functional.normalize(vectors).numpy() - self._mean_X, n)
        places = [places_N[places_N >= 0] for places_N in places_BN]
        return places if self._rows is None else [self._rows[places_N] for places_N in places]

    def bytes_per_query(self, query_BX: Tensor, k: int) -> int:
        """Bytes that one query reads on average: codes, and the memories and norms of its candidates."""
        faiss = require_faiss()
        inner = _inner(self._index)
        n_codes = inner.ntotal
        if isinstance(inner, faiss.IndexIVF):
            faiss.cvar.indexIVF_stats.reset()
        found = self.candidates(query_BX, max(self.manifest.rescored, 2 * k))
        if isinstance(inner, faiss.IndexIVF):
            n_codes = faiss.cvar.indexIVF_stats.ndis // len(query_BX)
        n_rows = sum(map(len, found)) / len(found)
        return int(n_codes * inner.sa_code_size() + n_rows * row_bytes(self.store))


def open_index(store: MemoryStore, rows: np.ndarray | None = None) -> IndexedSearcher:
    """The index of an open store.

    Args:
        store: The store.
        rows: As `IndexedSearcher` takes them.

    Raises:
        RetrievalError: This version of the store has no index, or one whose building did not end.
        CorruptStoreError: A file of the index is damaged, or belongs to another store.
        ConfigError: FAISS is not installed.
    """
    storage = open_storage(store.url)
    manifest = read_index_manifest(storage, store.version)
    if manifest is None or manifest.measured is None or manifest.commit_id != store.manifest.commit_id:
        raise RetrievalError(
            f"version {store.version} of the store {store.url} has no complete index",
            hint="build it with `clara-dist index build`, which takes over what an older version's index has",
        )
    return load_index(store, manifest, rows)


def open_searcher(
    store: MemoryStore, index: str, device: torch.device | str = "cpu"
) -> ExactSearcher | IndexedSearcher:
    """An `IndexedSearcher` or an `ExactSearcher`.

    Args:
        store: The store.
        index: ``none``: exact; ``auto``: by the index if this version has a complete one; ``required``: only so.
        device: Of an exact search; an index is searched on the CPU.

    Raises:
        RetrievalError, CorruptStoreError, ConfigError: As `open_index`.
    """
    if index == "none":
        return ExactSearcher(store, device=device)
    manifest = read_index_manifest(open_storage(store.url), store.version)
    ready = manifest is not None and manifest.measured and manifest.commit_id == store.manifest.commit_id
    return open_index(store) if ready or index == "required" else ExactSearcher(store, device=device)


def load_index(store: MemoryStore, manifest: IndexManifest, rows: np.ndarray | None = None) -> IndexedSearcher:
    """`open_index` of a manifest that was read already."""
    storage = open_storage(store.url)
    codec = read_index_file(storage, manifest.codec).to_pybytes()
    mean_X = np.frombuffer(read_index_file(storage, manifest.mean), np.float32)
    code_bytes = load_codec(codec).sa_code_size()
    codes = [np.empty((0, code_bytes), np.uint8)]
    for shard in store.shards:
        if not shard.info.rows:
            continue
        found = manifest.codes.get(shard.info.file)
        if found is None or found.size_bytes != shard.info.rows * code_bytes:
            raise CorruptStoreError(
                f"the index of the store {store.url} has no codes that fit its shard {shard.info.file}",
                hint="delete the store's folder index/ and build the index again",
            )
        codes_SC = np.frombuffer(read_index_file(storage, found), np.uint8).reshape(-1, code_bytes)
        codes.append(codes_SC if shard.live is None else codes_SC[shard.live])
    return IndexedSearcher(store, manifest, codec, mean_X, np.concatenate(codes), rows)


def row_bytes(store: MemoryStore) -> int:
    """What an exact search reads of one row: its memory and its norm."""
    return 2 * store.n_memory_tokens * store.hidden_size + 4


def load_codec(data: bytes) -> Any:
    """A trained FAISS index without rows, of bytes whose digest was compared: FAISS does not defend itself."""
    return require_faiss().deserialize_index(np.frombuffer(data, np.uint8))


def add_codes(index: Any, codes_NC: np.ndarray) -> None:
    """Give a trained index its rows, numbered from 0."""
    faiss = require_faiss()
    inner = _inner(index)
    codes_NC = np.ascontiguousarray(codes_NC)
    if isinstance(inner, faiss.IndexIVF):
        inner.add_sa_codes(codes_NC, np.arange(len(codes_NC), dtype=np.int64))
    else:
        inner.add_sa_codes(codes_NC)
    index.ntotal = inner.ntotal


def probe_an_eighth(index: Any) -> None:
    """Have an inverted file search an eighth of its lists (FAISS: one); the number is part of its bytes."""
    inner = _inner(index)
    if isinstance(inner, require_faiss().IndexIVF):
        inner.nprobe = max(1, inner.nlist // 8)


def require_faiss() -> Any:
    """The module ``faiss``, imported where it is needed; it runs as many threads as torch.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            "an approximate index needs faiss", got=str(error), hint="pip install 'clara-dist[index]'"
        ) from error
    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss


def _inner(index: Any) -> Any:
    """The index behind the projections."""
    faiss = require_faiss()
    return faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
