"""A store that several searchers share gives what one searcher finds in it, row for row and bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from clara_dist.errors import RetrievalError
from clara_dist.retrieval import ExactSearcher
from clara_dist.retrieval.sharded import PartSearcher, ShardedSearcher
from clara_dist.store import MemoryStore, delete
from clara_dist.store.part import open_part, share_shards
from tiny_stores import build_store, random_memory

SHARD_ROWS = [9, 1, 14, 6, 10]


def sharded(path: Path, n_parts: int, where: dict[str, tuple[str, ...]] | None = None) -> ShardedSearcher:
    version, shards = share_shards(str(path), None, n_parts)
    parts = [PartSearcher(str(path), version, part, where) for part in shards]
    # The order in which parts answer must not matter.
    return ShardedSearcher(
        lambda query, k: [part.search(query, k) for part in reversed(parts)],
        sum(part.n_rows() for part in parts),
        version,
    )


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    """Forty documents, of which every fifth has the same memory; three are deleted; two colours."""
    memory = random_memory(40)
    memory[::5] = memory[0]
    metadata = [{"colour": "red" if i < 9 or i % 3 == 0 else "blue"} for i in range(40)]
    build_store(tmp_path, memory, SHARD_ROWS, metadata=metadata, metadata_columns={"colour": "string"})
    delete(tmp_path, doc_ids=["doc-5", "doc-9", "doc-33"])
    return MemoryStore.open(tmp_path)


@pytest.mark.parametrize("n_parts", [1, 2, 3, 9])
@pytest.mark.parametrize("where", [None, {"colour": ("blue",)}])
def test_the_parts_find_what_the_whole_finds_ties_included(
    store: MemoryStore, n_parts: int, where: dict[str, tuple[str, ...]] | None
) -> None:
    whole = ExactSearcher(store, store.rows_where(where) if where else None)
    searcher = sharded(Path(store.url), n_parts, where)
    assert searcher.n_rows == whole.n_rows
    query = torch.from_numpy(np.stack([store.take_memory(np.array([0])), random_memory(1, seed=3)])).flatten(1)
    for k in (1, 8, whole.n_rows):
        expected, got = whole.search(query, k), searcher.search(query, k)
        assert torch.equal(got.rows_BK, expected.rows_BK)
        assert torch.equal(got.scores_BK, expected.scores_BK)


def test_parts_are_disjoint_and_of_about_the_same_size(store: MemoryStore) -> None:
    version, parts = share_shards(store.url, None, 2)
    assert (version, parts) == (2, [[2, 3], [0, 1, 4]])
    assert len(share_shards(store.url, 1, 9)[1]) == len(SHARD_ROWS)
    part = open_part(store.url, 2, parts[1])
    expected = [0, 1, 2, 3, 4, 6, 7, 8, *range(30, 33), *range(34, 40)]
    rows = part.whole_rows(np.arange(len(part.store)))
    assert [store.doc_ids([row])[0] for row in rows] == part.store.doc_ids(np.arange(len(part.store)))
    assert part.store.doc_ids(np.arange(len(part.store))) == [f"doc-{i}" for i in expected]


def test_more_documents_than_there_are(store: MemoryStore) -> None:
    searcher = sharded(Path(store.url), 2)
    for k in (0, 38):
        with pytest.raises(RetrievalError, match=r"1 \.\. 37 \(all there are\)"):
            searcher.search(torch.ones(1, 16), k)
