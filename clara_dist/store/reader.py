"""Reading a store: one version, whole, memory-mapped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clara_dist.errors import StoreError
from clara_dist.store.cache import local_shards
from clara_dist.store.deletions import live_rows, read_deletions
from clara_dist.store.fingerprint import Fingerprint
from clara_dist.store.ids import IdIndex
from clara_dist.store.manifest import Manifest, read_manifest
from clara_dist.store.shard import Shard, open_shard, reading
from clara_dist.store.storage import StoreLocation, open_storage
from clara_dist.store.where import Filter, RowCache, parse_where


@dataclass(frozen=True)
class StoredDocument:
    """A document, or a passage of one, as a store keeps it, without its memory.

    Attributes:
        parent_id: The document that this is a passage of; ``doc_id`` itself where it is all of it.
        n_tokens: Tokens of its encoder input.
        truncated: Whether it was cut at ``doc_max_tokens``.
    """

    doc_id: str
    parent_id: str
    title: str
    text: str
    metadata: dict[str, Any]
    n_tokens: int
    truncated: bool


class MemoryStore:
    """One version of a memory store, open for reading.

    Documents have row numbers 0 .. n_documents - 1, over the shards in manifest order; deleted ones have none. The
    version never changes under an open store, whatever is committed meanwhile. It takes no memory of its own: arrays
    are views of the mapped files, which all processes of a machine share. Those of a remote store are copies in the
    machine's cache (`store.cache`).

    Pickling keeps the location and the version; the copy opens the files itself.
    """

    def __init__(self, url: str, manifest: Manifest, shards: Sequence[Shard]) -> None:
        self.url = url
        self.manifest = manifest
        self.shards = tuple(shards)
        self._filtered = RowCache()
        self._row_edges = np.array([0, *np.cumsum([shard.rows for shard in shards])], np.int64)

    @classmethod
    def open(cls, store: StoreLocation, version: int | None = None) -> MemoryStore:
        """Open a version; None means the current one.

        Raises:
            StoreError: There is no store, or no such version.
            CorruptStoreError: The manifest or a shard is missing, truncated or unreadable. Bytes are not compared with
                their checksums here, but those that are downloaded; `verify` does that.
        """
        storage = open_storage(store)
        manifest = read_manifest(storage, version)
        files = local_shards(storage, manifest.shards)
        shards: list[Shard] = []
        deletions = read_deletions(storage, manifest)
        offset = 0
        for info in manifest.shards:
            live = live_rows(info.rows, deletions[info.file]) if info.file in deletions else None
            shards.append(open_shard(files, info, manifest.schema, offset, live))
            offset += shards[-1].rows
        return cls(storage.url, manifest, shards)

    def __reduce__(self) -> tuple[Any, ...]:
        return MemoryStore.open, (self.url, self.version)

    def __len__(self) -> int:
        return self.n_documents

    @property
    def version(self) -> int:
        return self.manifest.version

    @property
    def fingerprint(self) -> Fingerprint:
        return self.manifest.fingerprint

    @property
    def n_documents(self) -> int:
        return int(self._row_edges[-1])

    @property
    def n_parents(self) -> int:
        """Documents that the rows come from: fewer than rows where long ones were split into passages."""
        return len(self._document_starts)

    @property
    def n_memory_tokens(self) -> int:
        return self.manifest.schema.n_memory_tokens

    @property
    def hidden_size(self) -> int:
        return self.manifest.schema.hidden_size

    def require_fingerprint(self, fingerprint: Fingerprint, what: str = "the model") -> None:
        """Refuse a model that did not write this store.

        Raises:
            FingerprintMismatchError: Naming every field that differs, with both values.
        """
        self.fingerprint.require_match(fingerprint, f"the store {self.url}", what)

    def take_memory(self, rows: np.ndarray) -> np.ndarray:
        """Copy memories out.

        Args:
            rows: Row numbers, integers of any shape; repeats and any order are fine.

        Returns:
            float16, ``rows.shape + (M, D)``.

        Raises:
            StoreError: A row is outside the store.
        """
        rows = np.asarray(rows)
        taken = np.empty((rows.size, self.n_memory_tokens, self.hidden_size), np.float16)
        for shard, places, local in self._by_shard(rows):
            taken[places] = shard.memory_SMD[shard.positions(local)]
        return taken.reshape(*rows.shape, self.n_memory_tokens, self.hidden_size)

    def doc_ids(self, rows: np.ndarray | Sequence[int]) -> list[str]:
        """Ids of the documents in ``rows``, flattened.

        Raises:
            StoreError: A row is outside the store.
            CorruptStoreError: The bytes of an id are damaged.
        """
        return [values["doc_id"] for values in self._take(rows, ["doc_id"])]

    def documents(self, rows: np.ndarray | Sequence[int]) -> list[StoredDocument]:
        """The documents in ``rows``, flattened, in that order.

        Raises:
            StoreError: A row is outside the store.
            CorruptStoreError: The bytes of a document are damaged.
        """
        columns = ["doc_id", "parent_id", "title", "text", "metadata", "n_tokens", "truncated"]
        return [
            StoredDocument(**{**values, "metadata": json.loads(values["metadata"])})
            for values in self._take(rows, columns)
        ]

    def rows_of(self, doc_ids: Sequence[str]) -> np.ndarray:
        """Rows of ``doc_ids``, int64; -1 where an id is not in the store. The first call indexes all ids."""
        return self._id_index.rows_of(doc_ids)

    def rows_of_documents(self, doc_ids: Sequence[str]) -> list[np.ndarray]:
        """All rows of each document: one, its passages where it was split, none where it is not in the store.

        A passage's own id gives that one row. The first call indexes all ids.
        """
        starts = self._document_starts
        if len(starts) == self.n_documents:
            return [row[row >= 0] for row in self.rows_of(doc_ids)[:, None]]
        edges = np.append(starts, self.n_documents)
        found = []
        for first, passage in zip(self._parent_index.rows_of(doc_ids), self.rows_of(doc_ids), strict=True):
            if first >= 0:
                found.append(np.arange(first, edges[np.searchsorted(edges, first, "right")]))
            else:
                found.append(np.array([passage] if passage >= 0 else [], np.int64))
        return found

    def rows_where(self, where: Filter) -> np.ndarray:
        """Rows that a filter lets through. Reads the columns that it names; the last few answers are kept.

        Args:
            where: Such as ``"split = 'train' and year >= 2020"`` or ``{"split": "train"}``, see `parse_where`. An empty
                mapping: all rows.

        Returns:
            int64, ascending, read-only.

        Raises:
            FilterError: It cannot be read, or does not fit the store's columns.
            CorruptStoreError: A shard is damaged.
        """
        where = parse_where(where, self.manifest.schema)
        rows = self._filtered.get(where)
        if rows is None:
            found = [np.empty(0, np.int64)]
            for shard in self.shards:
                with reading(self.url, shard.info.file):
                    keep = where.matches(shard.batch)
                found.append(shard.row_offset + np.flatnonzero(keep if shard.live is None else keep[shard.live]))
            rows = np.concatenate(found)
            self._filtered.put(where, rows)
        return rows

    @cached_property
    def _document_starts(self) -> np.ndarray:
        """First row of every document, int64, ascending: its passages stand one after the other in one shard."""
        starts = [np.empty(0, np.int64)]
        for shard in self.shards:
            parents = shard.parent_ids
            is_first = np.ones(len(parents), np.bool_)
            is_first[1:] = pc.not_equal(parents[1:], parents[:-1]).to_numpy(zero_copy_only=False)
            starts.append(shard.row_offset + np.flatnonzero(is_first))
        return np.concatenate(starts)

    @cached_property
    def _parent_index(self) -> IdIndex:
        return IdIndex(
            (shard.parent_ids for shard in self.shards),
            lambda rows: [values["parent_id"] for values in self._take(rows, ["parent_id"])],
        )

    @cached_property
    def _id_index(self) -> IdIndex:
        return IdIndex((shard.doc_ids for shard in self.shards), self.doc_ids)

    def _take(self, rows: np.ndarray | Sequence[int], columns: list[str]) -> list[dict[str, Any]]:
        rows = np.asarray(rows, np.int64)
        taken: list[dict[str, Any]] = [{}] * rows.size
        for shard, places, local in self._by_shard(rows):
            with reading(self.url, shard.info.file):
                values = shard.batch.select(columns).take(pa.array(shard.positions(local))).to_pylist()
            for place, row in zip(places.tolist(), values, strict=True):
                taken[place] = row
        return taken

    def _by_shard(self, rows: np.ndarray) -> Iterator[tuple[Shard, np.ndarray, np.ndarray]]:
        """Split flattened ``rows`` by shard: (shard, places in ``rows``, rows inside the shard, ascending)."""
        flat = rows.reshape(-1)
        if not flat.size:
            return
        if flat.dtype.kind not in "iu" or flat.min() < 0 or flat.max() >= self.n_documents:
            raise StoreError(
                f"there is no such row in the store {self.url}",
                got=f"{flat.dtype} rows {flat.min()} .. {flat.max()}",
                expected=f"integers 0 .. {self.n_documents - 1}",
            )
        order = np.argsort(flat, kind="stable")
        ordered = flat[order]
        edges = np.searchsorted(ordered, self._row_edges)
        for index in np.flatnonzero(np.diff(edges)):
            piece = slice(edges[index], edges[index + 1])
            yield self.shards[index], order[piece], ordered[piece] - self._row_edges[index]
