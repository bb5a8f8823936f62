from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clara_dist.errors import CorruptStoreError, FingerprintMismatchError, StoreError
from clara_dist.store import (
    Fingerprint,
    MemoryStore,
    ShardInfo,
    StoreSchema,
    append_shards,
    append_store,
    delete,
    verify,
    write_shard,
)
from tiny_stores import FINGERPRINT, build_store, random_memory, write_rows

SCHEMA = StoreSchema(2, 8)
MEMORY = random_memory(12)


def add(store: Path, *shards: ShardInfo, on_existing: str = "error") -> int:
    return append_shards(store, SCHEMA, FINGERPRINT, shards, on_existing=on_existing).version


def contents(store: Path) -> dict[str, np.ndarray]:
    opened = MemoryStore.open(store)
    assert verify(store).ok
    rows = np.arange(opened.n_documents)
    return dict(zip(opened.doc_ids(rows), opened.take_memory(rows), strict=True))


def assert_holds(store: Path, expected: dict[int, np.ndarray]) -> None:
    """The store holds document i with this memory, in this order."""
    found = contents(store)
    assert list(found) == [f"doc-{i}" for i in expected]
    np.testing.assert_array_equal(list(found.values()), list(expected.values()))


def test_new_documents_stand_behind_the_old_ones_and_old_versions_stay(tmp_path: Path):
    build_store(tmp_path, MEMORY[:5], [2, 3])
    shards = [write_rows(tmp_path, "x", MEMORY[5:8], first=5), write_rows(tmp_path, "y", MEMORY[8:], first=8)]
    assert add(tmp_path, *shards) == 2
    assert_holds(tmp_path, dict(enumerate(MEMORY)))
    assert MemoryStore.open(tmp_path, version=1).n_documents == 5


def test_a_store_that_does_not_exist_is_made(tmp_path: Path):
    assert add(tmp_path, write_rows(tmp_path, "x", MEMORY)) == 1
    assert_holds(tmp_path, dict(enumerate(MEMORY)))


def test_appending_again_changes_nothing(tmp_path: Path):
    build_store(tmp_path, MEMORY[:5])
    shard = write_rows(tmp_path, "x", MEMORY[5:], first=5)
    assert [add(tmp_path, shard) for _ in range(3)] == [2, 2, 2]


def test_existing_documents_are_refused_by_name(tmp_path: Path):
    build_store(tmp_path, MEMORY[:5], [2, 3])
    with pytest.raises(StoreError, match=r"2 of the documents are in the store.*\n.*'doc-3', 'doc-4'"):
        add(tmp_path, write_rows(tmp_path, "x", MEMORY[:4], first=3))
    assert MemoryStore.open(tmp_path).version == 1


def test_existing_documents_are_skipped(tmp_path: Path):
    build_store(tmp_path, MEMORY[:5], [2, 3])
    shard = write_rows(tmp_path, "x", -MEMORY[3:8], first=3)
    known = write_rows(tmp_path, "y", -MEMORY[:2], first=0)
    assert add(tmp_path, shard, known, on_existing="skip") == 2
    assert_holds(tmp_path, {**dict(enumerate(MEMORY[:5])), **{i: -MEMORY[i] for i in range(5, 8)}})
    assert "shards/y.arrow" not in {shard.file for shard in MemoryStore.open(tmp_path).manifest.shards}
    assert add(tmp_path, shard, known, on_existing="skip") == 2


def test_existing_documents_are_replaced_in_one_version(tmp_path: Path):
    build_store(tmp_path, MEMORY[:5], [2, 3])
    shard = write_rows(tmp_path, "x", -MEMORY[1:4], first=1)
    assert add(tmp_path, shard, on_existing="replace") == 2
    assert_holds(tmp_path, {0: MEMORY[0], 4: MEMORY[4], 1: -MEMORY[1], 2: -MEMORY[2], 3: -MEMORY[3]})
    assert add(tmp_path, shard, on_existing="replace") == 2
    np.testing.assert_array_equal(list(contents_of(tmp_path, 1).values()), MEMORY[:5])


def contents_of(store: Path, version: int) -> dict[str, np.ndarray]:
    opened = MemoryStore.open(store, version)
    rows = np.arange(opened.n_documents)
    return dict(zip(opened.doc_ids(rows), opened.take_memory(rows), strict=True))


def test_a_listed_shards_deleted_documents_come_back(tmp_path: Path):
    build_store(tmp_path, MEMORY[:3])
    shard = write_rows(tmp_path, "x", MEMORY[3:6], first=3)
    add(tmp_path, shard)
    delete(tmp_path, doc_ids=["doc-4", "doc-0"])
    assert add(tmp_path, shard) == 4
    assert_holds(tmp_path, {i: MEMORY[i] for i in (1, 2, 3, 4, 5)})


def test_a_document_of_passages_is_replaced_whole(tmp_path: Path):
    def passages(name: str, ids: list[str], parents: list[str], memory: np.ndarray) -> ShardInfo:
        n = len(ids)
        table = SCHEMA.to_table(
            doc_ids=ids, parent_ids=parents, titles=[""] * n, texts=["t"] * n, metadata=[{}] * n, memory_SMD=memory,
            n_tokens=[1] * n, truncated=[False] * n,
        )  # fmt: skip
        return write_shard(tmp_path, table, name)

    old = passages("a", ["p#1", "p#2", "p#3", "q"], ["p", "p", "p", "q"], MEMORY[:4])
    assert add(tmp_path, old) == 1
    shorter = passages("b", ["p"], ["p"], MEMORY[4:5])
    with pytest.raises(StoreError, match=r"1 of the documents are in the store.*\n.*'p'"):
        add(tmp_path, shorter)
    add(tmp_path, shorter, on_existing="replace")
    assert list(contents(tmp_path)) == ["q", "p"]


def test_what_cannot_stand_beside_the_store_is_refused(tmp_path: Path):
    build_store(tmp_path, MEMORY[:3])
    shard = write_rows(tmp_path, "x", MEMORY[3:], first=3)
    other = Fingerprint({**FINGERPRINT.fields, "compressor": "c2"})
    with pytest.raises(FingerprintMismatchError, match="differ in: compressor"):
        append_shards(tmp_path, SCHEMA, other, [shard])
    with pytest.raises(StoreError, match="columns of the new shards differ"):
        append_shards(tmp_path, StoreSchema(2, 8, {"year": "int64"}), FINGERPRINT, [shard])
    again = write_rows(tmp_path, "y", MEMORY[5:6], first=5)
    with pytest.raises(StoreError, match=r"more than once in what is to be appended.*\n.*'doc-5'"):
        add(tmp_path, shard, again)
    (tmp_path / "shards/x.arrow").unlink()
    with pytest.raises(CorruptStoreError, match=r"shards/x\.arrow"):
        add(tmp_path, shard)
    assert MemoryStore.open(tmp_path).version == 1


def test_a_store_is_appended_without_its_deleted_rows(tmp_path: Path):
    first, second = tmp_path / "a", tmp_path / "b"
    build_store(first, MEMORY[:4], [4])
    write_rows(second, "unit-00000", MEMORY[4:8], first=4)  # the same name as in the first store
    add(second, write_rows(second, "unit-00000", MEMORY[4:8], first=4))
    delete(second, doc_ids=["doc-5"])
    assert append_store(first, second).version == 2
    assert_holds(first, {i: MEMORY[i] for i in (0, 1, 2, 3, 4, 6, 7)})
    assert append_store(first, second).version == 2
    assert append_store(tmp_path / "new", first).version == 1
    assert_holds(tmp_path / "new", {i: MEMORY[i] for i in (0, 1, 2, 3, 4, 6, 7)})


def test_a_damaged_store_is_not_appended(tmp_path: Path):
    build_store(tmp_path / "a", MEMORY[:4])
    build_store(tmp_path / "b", MEMORY[:4])
    path = tmp_path / "b/shards/unit-00000.arrow"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptStoreError, match="unit-00000"):
        append_store(tmp_path / "a", tmp_path / "b")
