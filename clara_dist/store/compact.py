"""Shards of a good size, without deleted rows. Memories are copied bit for bit, and the order of documents stays."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clara_dist.errors import CommitConflictError
from clara_dist.store.commits import Content, Snapshot, update
from clara_dist.store.deletions import live_rows
from clara_dist.store.manifest import Manifest, ShardInfo
from clara_dist.store.shard import read_columns
from clara_dist.store.storage import Storage, StoreLocation, open_storage
from clara_dist.store.writer import write_shard

TARGET_SIZE_BYTES = 256 << 20
_MAX_DELETED = 0.2


@dataclass(frozen=True)
class _Rewrite:
    """Neighbouring shards, with their deleted rows as they were read, and what stands in their place."""

    sources: tuple[ShardInfo, ...]
    deleted: tuple[np.ndarray | None, ...]
    made: tuple[ShardInfo, ...]


def compact(
    store: StoreLocation,
    *,
    target_size_bytes: int = TARGET_SIZE_BYTES,
    max_deleted: float = _MAX_DELETED,
    on_progress: Callable[[int], object] | None = None,
) -> Manifest:
    """Rewrite shards that hold many deleted rows, and runs of neighbours that are too small, in one commit.

    Memory holds one new shard at a time (and the one that is read, if the store is remote). Old versions can be read as
    before, until `collect` gives them up.
    Appends and deletions elsewhere may be committed meanwhile; what they changed of the rewritten shards is left as
    they made it.

    Args:
        store: The store's path or URL.
        target_size_bytes: About the size of a new shard; shards of less than half of it are too small.
        max_deleted: Shards of which a larger fraction is deleted are rewritten.
        on_progress: Called with the number of documents after each new shard.

    Returns:
        The new version's manifest, or the current one's if there is nothing to do.

    Raises:
        CommitConflictError: Other writers changed every shard that was rewritten.
        CorruptStoreError: A shard is damaged.
    """
    storage = open_storage(store)
    head = Snapshot.read(storage)
    rewrites = []
    for run in _runs(head, target_size_bytes, max_deleted):
        deleted = tuple(head.deletions.get(shard.file) for shard in run)
        made = []
        for table in _tables(storage, head, run, target_size_bytes):
            made.append(write_shard(storage, table, f"compact-{uuid.uuid4().hex}"))
            if on_progress is not None:
                on_progress(table.num_rows)
        rewrites.append(_Rewrite(run, deleted, tuple(made)))
    if not rewrites:
        return head.manifest
    return update(storage, "compact", lambda current: _replaced(current, rewrites))


def _runs(head: Snapshot, target: int, max_deleted: float) -> Iterator[tuple[ShardInfo, ...]]:
    """Neighbours that are worth rewriting together."""

    def n_deleted(shard: ShardInfo) -> int:
        return len(head.deletions.get(shard.file, ()))

    def is_poor(shard: ShardInfo) -> bool:
        alive = (shard.rows - n_deleted(shard)) / shard.rows if shard.rows else 0.0
        return 1 - alive > max_deleted or shard.size_bytes * alive < target / 2

    for poor, group in itertools.groupby(head.manifest.shards, is_poor):
        run = tuple(group)
        # A single small shard without a poor neighbour could only become itself.
        if poor and (len(run) > 1 or n_deleted(run[0]) > 0 or run[0].rows == 0):
            yield run


def _tables(storage: Storage, head: Snapshot, run: Sequence[ShardInfo], target: int) -> Iterator[pa.Table]:
    """The live rows of neighbours, cut into tables of about the target's size."""
    schema = head.manifest.schema
    pieces: list[pa.RecordBatch] = []
    held = 0
    for shard in run:
        rows = live_rows(shard.rows, head.deletions.get(shard.file))
        batch = read_columns(storage, shard, schema)
        starts = _document_starts(batch.column("parent_id").take(pa.array(rows)))
        row_bytes = max(1, batch.nbytes // max(1, shard.rows))
        begin = 0
        while begin < len(rows):
            room = max(1, (target - held) // row_bytes)
            end = int(starts[np.searchsorted(starts, min(begin + room, len(rows)))])
            pieces.append(batch.take(pa.array(rows[begin:end])))
            held += (end - begin) * row_bytes
            begin = end
            if held + row_bytes > target:
                table = pa.Table.from_batches([pa.concat_batches(pieces)])
                pieces, held = [], 0  # before the table is used: one new shard is held, not two
                yield table
    if pieces:
        yield pa.Table.from_batches([pa.concat_batches(pieces)])


def _document_starts(parents: pa.StringArray) -> np.ndarray:
    """Rows at which a shard may be cut, ascending: between documents, whose passages stay together; and its end."""
    is_first = np.ones(len(parents) + 1, np.bool_)
    if len(parents):
        is_first[1:-1] = pc.not_equal(parents[1:], parents[:-1]).to_numpy(zero_copy_only=False)
    return np.flatnonzero(is_first)


def _replaced(head: Snapshot, rewrites: Sequence[_Rewrite]) -> Content:
    """The head with those rewrites whose sources are still as they were read.

    Raises:
        CommitConflictError: None is.
    """
    shards = list(head.manifest.shards)
    deletions = dict(head.deletions)
    n_done = 0
    for rewrite in rewrites:
        files = [shard.file for shard in shards]
        first = rewrite.sources[0].file
        start = files.index(first) if first in files else len(files)
        place = slice(start, start + len(rewrite.sources))
        same = all(
            np.array_equal(deletions.get(source.file, ()), () if deleted is None else deleted)
            for source, deleted in zip(rewrite.sources, rewrite.deleted, strict=True)
        )
        if tuple(shards[place]) == rewrite.sources and same:
            shards[place] = rewrite.made
            for source in rewrite.sources:
                deletions.pop(source.file, None)
            n_done += 1
    if not n_done:
        raise CommitConflictError(
            "other writers changed the shards while they were compacted; nothing was changed", hint="run it again"
        )
    return Content(tuple(shards), deletions)
