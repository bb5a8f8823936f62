"""What differs between two versions of a store, or between two stores."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from clara_dist.store.reader import MemoryStore

# Rows that are compared at a time: at M * D = 65,536 they take 64 MiB on either side.
_CHUNK_ROWS = 512
_FIELDS = ("parent_id", "title", "text", "metadata", "n_tokens", "truncated")


@dataclass(frozen=True)
class DiffReport:
    """What one store has and another has not; ids in the order of their store.

    Attributes:
        fingerprints: Fields of the fingerprints that differ: their values in both.
        added: Ids that only the second has.
        removed: Ids that only the first has.
        changed: Ids that both have with other contents: what differs, of ``parent_id``, ``title``, ``text``,
            ``metadata``, ``n_tokens``, ``truncated`` and ``memory`` (by its bits).
        n_same: Documents that both have alike.
    """

    fingerprints: dict[str, tuple[str | None, str | None]]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: dict[str, tuple[str, ...]]
    n_same: int

    @property
    def equal(self) -> bool:
        """Whether there is no difference; the order of documents does not count."""
        return not (self.fingerprints or self.added or self.removed or self.changed)


def diff(before: MemoryStore, after: MemoryStore) -> DiffReport:
    """Compare two versions of a store, or two stores, document by document.

    Shards that both have unchanged are not read, so versions of one store are compared at the cost of their difference.
    """
    n_shared, left, right = _without_shared_shards(before, after)
    removed: list[str] = []
    changed: dict[str, tuple[str, ...]] = {}
    for rows in _chunks(left):
        ids = left.doc_ids(rows)
        theirs = right.rows_of(ids)
        removed += [doc_id for doc_id, row in zip(ids, theirs, strict=True) if row < 0]
        both = theirs >= 0
        changed.update(_changes(left, right, rows[both], theirs[both]))
    added = []
    for rows in _chunks(right):
        ids = right.doc_ids(rows)
        added += [doc_id for doc_id, row in zip(ids, left.rows_of(ids), strict=True) if row < 0]
    a, b = before.fingerprint.fields, after.fingerprint.fields
    return DiffReport(
        fingerprints={name: (a.get(name), b.get(name)) for name in sorted({*a, *b}) if a.get(name) != b.get(name)},
        added=tuple(added),
        removed=tuple(removed),
        changed=changed,
        n_same=n_shared + left.n_documents - len(removed) - len(changed),
    )


def _without_shared_shards(before: MemoryStore, after: MemoryStore) -> tuple[int, MemoryStore, MemoryStore]:
    """Rows of the shards that both have alike, and both stores without them."""
    stores = (before, after)
    ours, theirs = (
        {(s.info.checksum, None if s.live is None else s.live.tobytes()): s for s in x.shards} for x in stores
    )
    shared = ours.keys() & theirs.keys()
    rest = []
    for store, shards in zip(stores, (ours, theirs), strict=True):
        kept = []
        offset = 0
        for key, shard in shards.items():
            if key not in shared:
                kept.append(dataclasses.replace(shard, row_offset=offset))
                offset += shard.rows
        rest.append(MemoryStore(store.url, store.manifest, kept))
    return sum(ours[key].rows for key in shared), rest[0], rest[1]


def _changes(
    before: MemoryStore, after: MemoryStore, rows_a: np.ndarray, rows_b: np.ndarray
) -> Iterator[tuple[str, tuple[str, ...]]]:
    if not len(rows_a):
        return
    memory_a, memory_b = before.take_memory(rows_a), after.take_memory(rows_b)
    if memory_a.shape == memory_b.shape:
        same_S = (memory_a.view(np.uint16) == memory_b.view(np.uint16)).all(axis=(1, 2))
    else:
        same_S = np.zeros(len(rows_a), np.bool_)
    for ours, theirs, same in zip(before.documents(rows_a), after.documents(rows_b), same_S, strict=True):
        what = [name for name in _FIELDS if getattr(ours, name) != getattr(theirs, name)]
        if what or not same:
            yield ours.doc_id, (*what, *(() if same else ("memory",)))


def _chunks(store: MemoryStore) -> Iterator[np.ndarray]:
    for start in range(0, store.n_documents, _CHUNK_ROWS):
        yield np.arange(start, min(start + _CHUNK_ROWS, store.n_documents))
