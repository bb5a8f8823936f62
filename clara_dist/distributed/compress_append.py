"""What a job that adds to a store can know before it compresses anything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from clara_dist.data.corpus.scan import id_hash
from clara_dist.distributed.compress_workers import ShardWork
from clara_dist.store.append import already_there
from clara_dist.store.commits import Snapshot
from clara_dist.store.deletions import live_rows
from clara_dist.store.manifest import shard_file
from clara_dist.store.shard import read_columns
from clara_dist.store.storage import open_storage

_NAMED = 5


def require_new(store: str, tasks: Sequence[ShardWork], id_hashes: Sequence[npt.NDArray[np.uint64]]) -> None:
    """Refuse documents that a store has already.

    The commit looks again, at the version that is current by then. What shards hold that the store lists is left out:
    an earlier run of the same job added them.

    Args:
        store: The store's path or URL.
        tasks: All shards of the job.
        id_hashes: [n_documents, 2] of each shard, see `UnitScan`.

    Raises:
        StoreError: Naming some of them.
    """
    storage = open_storage(store)
    head = Snapshot.read(storage)
    listed = {shard.file for shard in head.manifest.shards}
    added = [hashes for task, hashes in zip(tasks, id_hashes, strict=True) if shard_file(task.name) not in listed]
    if not added:
        return
    wanted = np.concatenate(added)
    wanted = wanted[np.argsort(wanted[:, 0])]
    found: list[str] = []
    n_found = 0
    for shard in head.manifest.shards:
        live = live_rows(shard.rows, head.deletions.get(shard.file))
        parents = read_columns(storage, shard, head.manifest.schema, ["parent_id"]).column("parent_id")
        stored = parents.take(pa.array(live)).unique().to_pylist()
        hashes = np.frombuffer(b"".join(map(id_hash, stored)), "<u8").reshape(-1, 2)
        # Ids of the same first half hide each other here, one pair in 10^19; the commit compares the ids themselves.
        nearest = wanted[np.minimum(np.searchsorted(wanted[:, 0], hashes[:, 0]), len(wanted) - 1)]
        same = np.flatnonzero((nearest == hashes).all(axis=1))
        n_found += len(same)
        found += [stored[row] for row in same[: _NAMED - len(found)]]
    if n_found:
        raise already_there(storage.url, found, n_found)
