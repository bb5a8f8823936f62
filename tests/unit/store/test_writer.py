from __future__ import annotations

import json
import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from obstore.store import LocalStore

from clara_dist.errors import CommitConflictError, CorruptStoreError, FingerprintMismatchError, StoreError
from clara_dist.store import (
    Fingerprint,
    MemoryStore,
    ShardInfo,
    StoreSchema,
    commit,
    describe_shard,
    shard_names,
    verify,
)
from clara_dist.store.remote import RemoteStorage, RemoteUrl
from clara_dist.store.storage import LocalStorage, open_storage
from tiny_stores import FINGERPRINT, build_store, random_memory, write_rows

SCHEMA = StoreSchema(2, 8)


def files_of(store: Path) -> list[str]:
    return sorted(str(p.relative_to(store)) for p in store.rglob("*") if p.is_file())


def test_a_store_has_the_documented_layout_and_lists_shards_in_corpus_order(tmp_path: Path):
    memory = random_memory(6)
    late = write_rows(tmp_path, "b", memory[:4], first=0)
    early = write_rows(tmp_path, "a", memory[4:], first=4)
    manifest = commit(tmp_path, SCHEMA, FINGERPRINT, [late, early], writer_info={"job": "j1"})
    assert files_of(tmp_path) == ["manifests/00000001.json", "shards/a.arrow", "shards/b.arrow"]
    body = json.loads((tmp_path / "manifests/00000001.json").read_text())
    assert [shard["file"] for shard in body["shards"]] == ["shards/b.arrow", "shards/a.arrow"]
    assert (body["n_documents"], body["n_memory_tokens"], body["hidden_size"], body["dtype"]) == (6, 2, 8, "float16")
    assert body["fingerprint"] == dict(FINGERPRINT.fields)
    assert body["writer"] == {"job": "j1"}
    store = MemoryStore.open(tmp_path)
    assert store.manifest == manifest
    assert store.doc_ids(np.arange(6)) == [f"doc-{i}" for i in range(6)]
    assert (late.min_doc_id, late.max_doc_id, late.rows) == ("doc-0", "doc-3", 4)
    assert late.size_bytes == (tmp_path / "shards/b.arrow").stat().st_size


def test_writing_a_unit_again_changes_nothing(tmp_path: Path):
    memory = random_memory(3)
    first = write_rows(tmp_path, "unit-7", memory)
    inode = (tmp_path / "shards/unit-7.arrow").stat().st_ino
    assert write_rows(tmp_path, "unit-7", memory) == first
    assert (tmp_path / "shards/unit-7.arrow").stat().st_ino == inode
    assert files_of(tmp_path) == ["shards/unit-7.arrow"]
    assert shard_names(tmp_path) == ["unit-7"]
    assert describe_shard(tmp_path, SCHEMA, "unit-7") == first


def test_of_two_that_write_the_same_documents_the_first_wins_and_both_describe_its_file(tmp_path: Path):
    first, rounded = random_memory(3, seed=1), random_memory(3, seed=1)
    rounded[2, 1, 7] *= 1.01
    info = write_rows(tmp_path, "unit", first)
    assert write_rows(tmp_path, "unit", rounded) == info
    commit(tmp_path, SCHEMA, FINGERPRINT, [info])
    assert verify(tmp_path).ok
    np.testing.assert_array_equal(MemoryStore.open(tmp_path).take_memory(np.arange(3)), first)


def test_a_shard_takes_no_other_documents_and_no_damage_for_its_own(tmp_path: Path):
    write_rows(tmp_path, "unit", random_memory(3))
    path = tmp_path / "shards/unit.arrow"
    before = path.read_bytes()
    for changes in ({"first": 1}, {"metadata": [{}] * 3}, {"doc_ids": ["doc-0", "doc-2", "doc-1"]}):
        with pytest.raises(StoreError, match="holds other documents"):
            write_rows(tmp_path, "unit", random_memory(3), **changes)
    with pytest.raises(StoreError, match="holds other documents"):
        write_rows(tmp_path, "unit", random_memory(2))
    assert path.read_bytes() == before
    path.write_bytes(before[:-40])
    with pytest.raises(CorruptStoreError, match=r"unit\.arrow"):
        write_rows(tmp_path, "unit", random_memory(3))


def write_together(store: str, seed: int, start: Any, found: Any) -> None:
    memory = random_memory(50, seed=1)
    memory += np.float16(seed) * np.float16(2**-12)  # stands for another processor's rounding
    for number in range(20):
        start.wait()
        found.put((number, write_rows(Path(store), f"unit-{number}", memory, first=50 * number)))


def test_processes_that_publish_the_same_shard_at_the_same_moment(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    start, found = context.Barrier(3), context.Queue()
    writers = [context.Process(target=write_together, args=(str(tmp_path), seed, start, found)) for seed in range(3)]
    for writer in writers:
        writer.start()
    answers = [found.get(timeout=60) for _ in range(60)]
    for writer in writers:
        writer.join()
    infos: dict[int, set[ShardInfo]] = {}
    for number, info in answers:
        infos.setdefault(number, set()).add(info)
    assert {len(told) for told in infos.values()} == {1}, "all writers describe the same bytes"
    commit(tmp_path, SCHEMA, FINGERPRINT, [infos[number].pop() for number in range(20)])
    assert verify(tmp_path).ok
    assert len(files_of(tmp_path)) == 21


def test_a_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full_disk(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(StoreError, match=rf"disk full at {tmp_path}/shards, \d{{4}} bytes needed"):
        write_rows(tmp_path, "unit", random_memory(3))
    assert files_of(tmp_path) == []


def test_leftovers_of_killed_writers_are_invisible(tmp_path: Path):
    manifest = build_store(tmp_path, random_memory(3))
    (tmp_path / "manifests/.00000002.json.abc.tmp").write_text('{"version": 2')
    (tmp_path / "shards/.unit-9.arrow.abc.tmp").write_bytes(b"ARROW1")
    assert MemoryStore.open(tmp_path).manifest == manifest
    assert shard_names(tmp_path) == ["unit-00000"]
    assert verify(tmp_path).unlisted_files == ()


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "ü", "x" * 201])
def test_bad_shard_names_are_refused(tmp_path: Path, name: str):
    with pytest.raises(StoreError, match="not a shard name"):
        write_rows(tmp_path, name, random_memory(1))
    assert files_of(tmp_path) == []


def test_append_keeps_the_old_version_whole(tmp_path: Path):
    memory = random_memory(5)
    first = build_store(tmp_path, memory[:3])
    reader = MemoryStore.open(tmp_path)
    added = write_rows(tmp_path, "more", memory[3:], first=3)
    second = commit(tmp_path, SCHEMA, FINGERPRINT, [*first.shards, added], parent=1)
    assert (second.version, second.parent, second.n_documents) == (2, 1, 5)
    assert (reader.version, reader.n_documents) == (1, 3)
    assert np.array_equal(reader.take_memory(np.arange(3)), memory[:3])
    assert np.array_equal(MemoryStore.open(tmp_path).take_memory(np.arange(5)), memory)
    assert MemoryStore.open(tmp_path, version=1).n_documents == 3
    with pytest.raises(StoreError, match="no version 3"):
        MemoryStore.open(tmp_path, version=3)


def test_a_stale_parent_is_a_conflict(tmp_path: Path):
    manifest = build_store(tmp_path, random_memory(3))
    for parent in (None, 2):
        with pytest.raises(CommitConflictError, match="version"):
            commit(tmp_path, SCHEMA, FINGERPRINT, manifest.shards, parent=parent)
    assert len(files_of(tmp_path)) == 2


def test_of_concurrent_committers_exactly_one_wins(tmp_path: Path):
    shards = [write_rows(tmp_path, name, random_memory(3)) for name in "abcd"]
    barrier = threading.Barrier(len(shards))

    def attempt(shard: ShardInfo) -> int | None:
        barrier.wait()
        try:
            return commit(tmp_path, SCHEMA, FINGERPRINT, [shard]).version
        except CommitConflictError:
            return None

    with ThreadPoolExecutor(len(shards)) as pool:
        outcome = list(pool.map(attempt, shards))
    assert sorted(outcome, key=str) == [1, None, None, None]
    assert MemoryStore.open(tmp_path).manifest.shards == (shards[outcome.index(1)],)


def test_a_commit_that_loses_the_race_after_its_checks_is_a_conflict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ours = write_rows(tmp_path, "ours", random_memory(3))
    theirs = write_rows(tmp_path, "theirs", random_memory(3))
    publish = LocalStorage.publish

    def lose_the_race(self, file, data, *, exclusive):
        monkeypatch.setattr(LocalStorage, "publish", publish)
        commit(tmp_path, SCHEMA, FINGERPRINT, [theirs])
        return publish(self, file, data, exclusive=exclusive)

    monkeypatch.setattr(LocalStorage, "publish", lose_the_race)
    with pytest.raises(CommitConflictError, match="committed version 1"):
        commit(tmp_path, SCHEMA, FINGERPRINT, [ours])
    assert MemoryStore.open(tmp_path).manifest.shards == (theirs,)


def test_duplicate_documents_are_refused_with_their_shards(tmp_path: Path):
    a = write_rows(tmp_path, "a", random_memory(3), first=0)
    b = write_rows(tmp_path, "b", random_memory(3), first=2)
    with pytest.raises(StoreError) as caught:
        commit(tmp_path, SCHEMA, FINGERPRINT, [a, b])
    assert caught.value.got == "'doc-2' in shards/a.arrow and shards/b.arrow"
    with pytest.raises(StoreError, match="listed twice"):
        commit(tmp_path, SCHEMA, FINGERPRINT, [a, a])
    assert not (tmp_path / "manifests").exists()


def test_a_shard_that_is_not_what_it_was_cannot_be_committed(tmp_path: Path):
    info = write_rows(tmp_path, "a", random_memory(3))
    with pytest.raises(CorruptStoreError, match=r"shards/a\.arrow"):
        commit(tmp_path, StoreSchema(2, 4), FINGERPRINT, [info])
    path = tmp_path / "shards/a.arrow"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptStoreError, match=r"shards/a\.arrow"):
        commit(tmp_path, SCHEMA, FINGERPRINT, [info])
    path.unlink()
    with pytest.raises(CorruptStoreError, match=r"shards/a\.arrow"):
        commit(tmp_path, SCHEMA, FINGERPRINT, [info])
    with pytest.raises(CorruptStoreError, match=r"shards/a\.arrow"):
        describe_shard(tmp_path, SCHEMA, "a")


def test_models_never_mix_but_one_may_replace_the_other(tmp_path: Path):
    first = build_store(tmp_path, random_memory(3))
    other = Fingerprint({**FINGERPRINT.fields, "compressor": "c2"})
    added = write_rows(tmp_path, "more", random_memory(2), first=3)
    with pytest.raises(FingerprintMismatchError, match="compressor"):
        commit(tmp_path, SCHEMA, other, [*first.shards, added], parent=1)
    replaced = commit(tmp_path, SCHEMA, other, [added], parent=1)
    assert (replaced.version, MemoryStore.open(tmp_path).fingerprint) == (2, other)


def test_an_empty_shard_and_an_empty_store_are_legal(tmp_path: Path):
    empty = write_rows(tmp_path, "none", random_memory(0))
    assert (empty.rows, empty.min_doc_id, empty.max_doc_id) == (0, None, None)
    assert describe_shard(tmp_path, SCHEMA, "none") == empty
    some = write_rows(tmp_path, "some", random_memory(2))
    commit(tmp_path, SCHEMA, FINGERPRINT, [empty, some])
    store = MemoryStore.open(tmp_path)
    assert store.doc_ids([0, 1]) == ["doc-0", "doc-1"]
    assert verify(tmp_path).ok
    commit(tmp_path, SCHEMA, FINGERPRINT, [], parent=1)
    assert MemoryStore.open(tmp_path).n_documents == 0
    assert verify(tmp_path).ok


def test_a_remote_store_has_the_bytes_of_a_local_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CLARA_CACHE_DIR", str(tmp_path / "cache"))
    memory = random_memory(5)
    remote = RemoteStorage(LocalStore(prefix=tmp_path), RemoteUrl.parse("s3://bucket/store"))
    shards = [write_rows(remote, "a", memory[:2]), write_rows(remote, "b", memory[2:], first=2)]  # type: ignore[arg-type]
    assert write_rows(remote, "a", memory[:2]) == shards[0]  # type: ignore[arg-type]
    commit(remote, SCHEMA, FINGERPRINT, shards)
    with pytest.raises(CommitConflictError):
        commit(remote, SCHEMA, FINGERPRINT, shards)
    store = MemoryStore.open(remote)
    assert store.url == "s3://bucket/store"
    assert np.array_equal(store.take_memory(np.arange(5)), memory)
    assert verify(remote).ok
    # The same bytes as a local store's: a bucket can be copied to a disk and opened.
    assert MemoryStore.open(tmp_path).manifest == store.manifest


def test_locations(tmp_path: Path):
    assert open_storage(tmp_path).url == str(tmp_path)
    assert isinstance(open_storage(f"file://{tmp_path}"), LocalStorage)
    assert isinstance(open_storage("s3://bucket/store?region=us-east-1"), RemoteStorage)
    with pytest.raises(StoreError, match="cannot open nope://x"):
        open_storage("nope://x")
    with pytest.raises(StoreError, match="no memory store"):
        MemoryStore.open(tmp_path / "absent")
