"""A part of a store: some of its shards, for a process that holds no more than them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from clara_dist.store.cache import local_shards
from clara_dist.store.deletions import live_rows, read_deletions
from clara_dist.store.manifest import read_manifest
from clara_dist.store.reader import MemoryStore
from clara_dist.store.shard import Shard, open_shard
from clara_dist.store.storage import StoreLocation, open_storage


@dataclass(frozen=True)
class StorePart:
    """Some shards of one version.

    Attributes:
        store: They alone; its rows count within them, in the order of the whole store.
        starts: int64, the row in the whole store of each shard's first document.
    """

    store: MemoryStore
    starts: np.ndarray

    def whole_rows(self, rows: np.ndarray) -> np.ndarray:
        """Rows of the whole store, of rows within the part."""
        shards = self.store.shards
        edges = np.array([shard.row_offset for shard in shards], np.int64)
        index = np.searchsorted(edges, rows, "right") - 1
        return rows + (self.starts - edges)[index]


def share_shards(store: StoreLocation, version: int | None, n_parts: int) -> tuple[int, list[list[int]]]:
    """Divide a store's shards among ``n_parts`` so that each gets about as many documents.

    Returns:
        The version, and for each part its shards, as ascending positions in the manifest; no part is empty, so there
        are fewer parts than asked for where there are fewer shards.
    """
    manifest = read_manifest(open_storage(store), version)
    parts: list[list[int]] = [[] for _ in range(min(n_parts, len(manifest.shards)))]
    loads = [0] * len(parts)
    rows = [info.rows for info in manifest.shards]
    for index in sorted(range(len(rows)), key=lambda index: -rows[index]):
        lightest = loads.index(min(loads))
        parts[lightest].append(index)
        loads[lightest] += rows[index]
    return manifest.version, [sorted(part) for part in parts]


def open_part(store: StoreLocation, version: int, indices: Sequence[int]) -> StorePart:
    """Open some shards of a version; of a remote store only they are copied to this machine.

    Args:
        store: Directory or URL.
        version: Of the store.
        indices: Ascending positions of the shards in the manifest, as `share_shards` gives them.

    Raises:
        StoreError, CorruptStoreError: As `MemoryStore.open`.
    """
    storage = open_storage(store)
    manifest = read_manifest(storage, version)
    deletions = read_deletions(storage, manifest)
    live = {info.file: live_rows(info.rows, deletions[info.file]) for info in manifest.shards if info.file in deletions}
    n_rows = [len(live[info.file]) if info.file in live else info.rows for info in manifest.shards]
    starts = np.cumsum([0, *n_rows])[:-1].astype(np.int64)
    infos = [manifest.shards[index] for index in indices]
    files = local_shards(storage, infos)
    shards: list[Shard] = []
    offset = 0
    for info in infos:
        shards.append(open_shard(files, info, manifest.schema, offset, live.get(info.file)))
        offset += shards[-1].rows
    return StorePart(MemoryStore(storage.url, replace(manifest, shards=tuple(infos)), shards), starts[list(indices)])
