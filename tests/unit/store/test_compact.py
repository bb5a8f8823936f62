from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clara_dist.errors import CommitConflictError
from clara_dist.store import MemoryStore, StoreSchema, append_shards, commit, compact, delete, diff, verify, write_shard
from tiny_stores import FINGERPRINT, build_store, random_memory, write_rows

MEMORY = random_memory(60)
# The package's `compact` is the function.
compact_module = importlib.import_module("clara_dist.store.compact")


def test_small_neighbours_become_shards_of_the_target_and_stay_bit_identical(tmp_path: Path):
    first = build_store(tmp_path, MEMORY, [3, 0, 4, 30, 5, 1, 17])
    target = first.shards[3].size_bytes
    made = compact(tmp_path, target_size_bytes=target)
    # 3 + 0 + 4 small ones, 30 is good, 5 + 1 are small, 17 is more than half of the target.
    assert [shard.rows for shard in made.shards] == [7, 30, 6, 17]
    assert made.shards[1] == first.shards[3]
    assert (made.version, made.operation, verify(tmp_path).ok) == (2, "compact", True)
    store = MemoryStore.open(tmp_path)
    assert store.doc_ids(range(60)) == [f"doc-{i}" for i in range(60)]
    np.testing.assert_array_equal(store.take_memory(np.arange(60)).view(np.uint16), MEMORY.view(np.uint16))
    assert diff(MemoryStore.open(tmp_path, 1), store).equal
    assert compact(tmp_path, target_size_bytes=target).version == 2


def test_shards_with_many_deleted_rows_lose_them(tmp_path: Path):
    build_store(tmp_path, MEMORY, [20, 20, 20])
    delete(tmp_path, doc_ids=[f"doc-{i}" for i in [0, *range(20, 26)]])
    target = 2 * MemoryStore.open(tmp_path).shards[0].info.size_bytes - 1  # 20 rows are just good, 14 are not
    made = compact(tmp_path, target_size_bytes=target // 2, max_deleted=0.2)
    assert [shard.rows for shard in made.shards] == [20, 14, 20]
    assert made.n_deleted == 1
    before, after = MemoryStore.open(tmp_path, 2), MemoryStore.open(tmp_path)
    assert diff(before, after).equal
    assert before.doc_ids(range(53)) == after.doc_ids(range(53))
    assert compact(tmp_path, target_size_bytes=target // 2, max_deleted=0).n_deleted == 0


def test_output_is_cut_into_shards_of_the_target_with_one_of_them_in_memory(tmp_path: Path):
    memory = np.zeros((64, 16, 1024), np.float16)
    memory[:] = np.arange(64)[:, None, None]
    manifest = build_store(tmp_path, memory, [4] * 16)
    target = 2 * max(shard.size_bytes for shard in manifest.shards) + 2
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    peaks = []
    made = compact(tmp_path, target_size_bytes=target, on_progress=lambda _: peaks.append(pool.bytes_allocated()))
    assert [shard.rows for shard in made.shards] == [8] * 8
    # The table that was just written is still held; nothing of those before it is.
    assert max(peaks) - before < 2 * target
    assert max(peaks[1:]) <= peaks[0] + (1 << 16)


def test_passages_of_a_document_stay_in_one_shard(tmp_path: Path):
    schema = StoreSchema(2, 8)
    ids, parents = [], []
    for number in range(8):
        ids += [f"p{number}#{i}" for i in (1, 2, 3)]
        parents += [f"p{number}"] * 3
    infos = []
    for start in range(0, 24, 6):
        table = schema.to_table(
            doc_ids=ids[start : start + 6], parent_ids=parents[start : start + 6], titles=[""] * 6, texts=["t"] * 6,
            metadata=[{}] * 6, memory_SMD=MEMORY[start : start + 6], n_tokens=[1] * 6, truncated=[False] * 6,
        )  # fmt: skip
        infos.append(write_shard(tmp_path, table, f"unit-{start}"))
    commit(tmp_path, schema, FINGERPRINT, infos)
    delete(tmp_path, doc_ids=["p0#1", "p4#3"])
    assert MemoryStore.open(tmp_path).n_parents == 8
    target = infos[0].size_bytes * 5 // 6  # five rows: one short of two documents
    made = compact(tmp_path, target_size_bytes=target, max_deleted=0)
    store = MemoryStore.open(tmp_path)
    assert (store.n_parents, sum(shard.documents for shard in made.shards)) == (8, 8)
    assert store.doc_ids(range(22)) == [doc_id for doc_id in ids if doc_id not in ("p0#1", "p4#3")]


def test_what_others_commit_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    build_store(tmp_path, MEMORY[:40], [5, 5, 30])
    target = MemoryStore.open(tmp_path).shards[2].info.size_bytes
    update = compact_module.update

    def late(store, operation, change):
        added = write_rows(tmp_path, "late", MEMORY[40:], first=40)
        append_shards(tmp_path, StoreSchema(2, 8), FINGERPRINT, [added])
        delete(tmp_path, doc_ids=["doc-20"])
        return update(store, operation, change)

    monkeypatch.setattr(compact_module, "update", late)
    made = compact(tmp_path, target_size_bytes=target)
    assert (made.version, [shard.rows for shard in made.shards]) == (4, [10, 30, 20])
    assert MemoryStore.open(tmp_path).doc_ids(range(59)) == [f"doc-{i}" for i in range(60) if i != 20]


def test_rows_that_others_delete_meanwhile_do_not_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    build_store(tmp_path, MEMORY[:10], [5, 5])
    update = compact_module.update

    def late(store, operation, change):
        delete(tmp_path, doc_ids=["doc-3"])
        return update(store, operation, change)

    monkeypatch.setattr(compact_module, "update", late)
    with pytest.raises(CommitConflictError, match="run it again"):
        compact(tmp_path, target_size_bytes=1 << 20)
    assert MemoryStore.open(tmp_path).rows_of(["doc-3"]).tolist() == [-1]
    monkeypatch.undo()
    assert compact(tmp_path, target_size_bytes=1 << 20).shards[0].rows == 9
