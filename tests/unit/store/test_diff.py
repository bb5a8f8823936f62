from __future__ import annotations

from pathlib import Path

import numpy as np

from clara_dist.store import MemoryStore, StoreSchema, append_shards, commit, compact, delete, diff, write_shard
from tiny_stores import FINGERPRINT, build_store, random_memory, write_rows

MEMORY = random_memory(20)


def test_added_removed_and_changed_documents_are_told_with_what_changed(tmp_path: Path):
    build_store(tmp_path, MEMORY[:10], [4, 6])
    schema = StoreSchema(2, 8)
    memory = MEMORY[4:12].copy()
    memory[1, 1, 7] = np.nextafter(memory[1, 1, 7], np.float16(np.inf))  # doc-5: one unit in the last place
    numbers = range(4, 12)
    table = schema.to_table(
        doc_ids=[f"doc-{i}" for i in numbers],
        titles=[f"Title {i}" for i in numbers],
        texts=[f"Text of document {i}: {'naïve ☃' if i != 6 else 'other'}" for i in numbers],
        metadata=[{"number": i if i != 7 else 0} for i in numbers],
        memory_SMD=memory,
        n_tokens=[i + 3 for i in numbers],
        truncated=[i % 3 == 0 for i in numbers],
    )
    append_shards(tmp_path, schema, FINGERPRINT, [write_shard(tmp_path, table, "new")], on_existing="replace")
    delete(tmp_path, doc_ids=["doc-2"])
    report = diff(MemoryStore.open(tmp_path, 1), MemoryStore.open(tmp_path))
    assert (report.added, report.removed) == (("doc-10", "doc-11"), ("doc-2",))
    assert report.changed == {"doc-5": ("memory",), "doc-6": ("text",), "doc-7": ("metadata",)}
    assert (report.n_same, report.equal) == (6, False)
    back = diff(MemoryStore.open(tmp_path), MemoryStore.open(tmp_path, 1))
    assert (back.added, back.removed) == (("doc-2",), ("doc-10", "doc-11"))


def test_zeros_of_other_signs_differ(tmp_path: Path):
    build_store(tmp_path / "a", np.zeros((1, 2, 8), np.float16))
    build_store(tmp_path / "b", -np.zeros((1, 2, 8), np.float16))
    report = diff(MemoryStore.open(tmp_path / "a"), MemoryStore.open(tmp_path / "b"))
    assert report.changed == {"doc-0": ("memory",)}


def test_stores_that_are_cut_otherwise_are_equal(tmp_path: Path):
    build_store(tmp_path / "a", MEMORY, [5, 15])
    build_store(tmp_path / "b", MEMORY, [1, 2, 17])
    compact(tmp_path / "b", target_size_bytes=1 << 20)
    assert diff(MemoryStore.open(tmp_path / "a"), MemoryStore.open(tmp_path / "b")).n_same == 20


def test_shards_that_both_have_are_not_compared(tmp_path: Path, monkeypatch):
    build_store(tmp_path, MEMORY[:10], [10])
    append_shards(tmp_path, StoreSchema(2, 8), FINGERPRINT, [write_rows(tmp_path, "x", MEMORY[10:], first=10)])
    before, after = MemoryStore.open(tmp_path, 1), MemoryStore.open(tmp_path)
    read = []
    monkeypatch.setattr(
        MemoryStore, "doc_ids", lambda store, rows, of=MemoryStore.doc_ids: read.append(len(rows)) or of(store, rows)
    )
    report = diff(before, after)
    assert (len(report.added), report.n_same, max(read)) == (10, 10, 10)


def test_other_models_stores_are_compared(tmp_path: Path):
    build_store(tmp_path / "a", MEMORY[:2])
    from clara_dist.store import Fingerprint

    other = Fingerprint({**FINGERPRINT.fields, "base": "b2"})
    shard = write_rows(tmp_path / "b", "x", random_memory(2, m=4))
    commit(tmp_path / "b", StoreSchema(4, 8), other, [shard])
    report = diff(MemoryStore.open(tmp_path / "a"), MemoryStore.open(tmp_path / "b"))
    assert report.fingerprints == {"base": ("b1", "b2")}
    assert report.changed == {"doc-0": ("memory",), "doc-1": ("memory",)}
