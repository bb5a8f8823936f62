from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from clara_dist.errors import CommitConflictError, CorruptStoreError, StoreError
from clara_dist.store import (
    Manifest,
    MemoryStore,
    StoreSchema,
    append_shards,
    collect,
    commit,
    delete,
    history,
    info,
    restore,
    shard_names,
    verify,
)
from clara_dist.store.collect import GRACE_S
from clara_dist.store.manifest import publish_manifest
from clara_dist.store.storage import LocalStorage
from faulty_storage import FaultyStorage
from tiny_stores import FINGERPRINT, build_store, random_memory, write_rows

SCHEMA = StoreSchema(2, 8)
MEMORY = random_memory(8)


def append(store, name: str, first: int) -> Manifest:
    return append_shards(store, SCHEMA, FINGERPRINT, [write_rows(Path(store.url), name, MEMORY[:1], first=first)])


def age(path: Path, seconds: float) -> None:
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def test_only_old_files_that_no_version_lists_are_deleted(tmp_path: Path):
    build_store(tmp_path, MEMORY, [3, 5])
    delete(tmp_path, doc_ids=["doc-1"])
    for name in ("old", "young"):
        write_rows(tmp_path, name, MEMORY[:1], first=90)
    (tmp_path / "shards/.left.arrow.tmp").write_bytes(b"half a shard")
    (tmp_path / "shards/.mine.arrow.tmp").write_bytes(b"half a shard")
    for file in tmp_path.rglob("*.*"):
        if file.name not in ("young.arrow", ".mine.arrow.tmp"):
            age(file, GRACE_S + 60)
    plan = collect(tmp_path, dry_run=True)
    assert (plan.files, plan.versions, plan.n_young) == (("shards/.left.arrow.tmp", "shards/old.arrow"), (), 2)
    assert (MemoryStore.open(tmp_path).version, shard_names(tmp_path)[0]) == (2, "old")
    report = collect(tmp_path)
    assert report.files == plan.files
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == [
        ".mine.arrow.tmp", "unit-00000.arrow", "unit-00001.arrow", "young.arrow",
    ]  # fmt: skip
    assert [m.operation for m in history(tmp_path)] == ["compress", "delete", "gc", "gc"]
    assert [MemoryStore.open(tmp_path, version).n_documents for version in (1, 2, 3, 4)] == [8, 7, 7, 7]
    assert verify(tmp_path).ok
    assert collect(tmp_path).manifest.version == 4


def test_old_versions_are_given_up_with_what_only_they_need(tmp_path: Path):
    storage = LocalStorage(tmp_path)
    build_store(tmp_path, MEMORY, [3, 5])  # 1
    append(storage, "a", 50)  # 2
    commit(tmp_path, SCHEMA, FINGERPRINT, [write_rows(tmp_path, "b", MEMORY[:2], first=60)], parent=2)  # 3
    append(storage, "c", 70)  # 4
    opened = MemoryStore.open(tmp_path, 2)
    report = collect(tmp_path, keep_versions=2, grace_s=0)
    assert (report.versions, report.manifest.version) == ((1, 2), 6)
    assert report.files == ("shards/a.arrow", "shards/unit-00000.arrow", "shards/unit-00001.arrow")
    assert info(tmp_path).versions == (3, 4, 5, 6)
    assert [MemoryStore.open(tmp_path, version).n_documents for version in (3, 4, 5, 6)] == [2, 3, 3, 3]
    np.testing.assert_array_equal(opened.take_memory(np.arange(8)), MEMORY)  # who had it open goes on reading
    for use in (MemoryStore.open, restore, verify):
        with pytest.raises(StoreError, match=r"version 2 of the store .* was given up"):
            use(tmp_path, 2)
    assert verify(tmp_path).ok
    # Collections do not count as versions.
    assert collect(tmp_path, keep_versions=2, grace_s=0).versions == ()
    assert collect(tmp_path, keep_versions=1, grace_s=0).versions == (3,)
    assert MemoryStore.open(tmp_path).n_documents == 3


def test_versions_are_given_up_by_age(tmp_path: Path):
    build_store(tmp_path, MEMORY)
    storage = LocalStorage(tmp_path)
    head = MemoryStore.open(tmp_path).manifest
    for version, year in ((2, 2020), (3, 2021)):
        created_at = f"{year}-01-01T00:00:00+00:00"
        publish_manifest(storage, Manifest(version, version - 1, SCHEMA, FINGERPRINT, head.shards, {}, created_at))
    append(storage, "a", 50)
    assert collect(tmp_path, older_than_s=3600, dry_run=True).versions == ()  # the first one is young, whatever follows
    publish_manifest(storage, Manifest(5, 4, SCHEMA, FINGERPRINT, head.shards, {}, "2022-01-01T00:00:00+00:00"))
    assert collect(tmp_path, older_than_s=0, dry_run=True).versions == (1, 2, 3, 4)
    assert collect(tmp_path, older_than_s=0, keep_versions=3, dry_run=True).versions == (1, 2)
    with pytest.raises(StoreError, match="at least 1"):
        collect(tmp_path, keep_versions=0)


def test_a_commit_at_any_moment_of_a_collection_loses_nothing(tmp_path: Path):
    """Before each of the collection's steps a writer commits a shard that the collection wants to delete."""
    moment = 0
    outcomes = []
    while True:
        store = tmp_path / str(moment)
        build_store(store, MEMORY[:4])
        shard = write_rows(store, "late", MEMORY[4:], first=4)
        result: list[str] = []

        def intrude(number: int, name: str, store=store, shard=shard, result=result, moment=moment) -> None:
            if number == moment and not result:
                result.append("begun")
                try:
                    append_shards(store, SCHEMA, FINGERPRINT, [shard])
                    result.append("committed")
                except StoreError as error:
                    result.append(type(error).__name__)

        collect(FaultyStorage(LocalStorage(store), before=intrude), grace_s=0)
        if not result:
            break
        outcomes.append(result[1])
        assert verify(store).ok, moment
        expected = 8 if result[1] == "committed" else 4
        assert MemoryStore.open(store).n_documents == expected, moment
        # Who was refused writes the shard again, and it stays.
        again = write_rows(store, "late", MEMORY[4:], first=4)
        append_shards(store, SCHEMA, FINGERPRINT, [again])
        collect(store, grace_s=0)
        np.testing.assert_array_equal(MemoryStore.open(store).take_memory(np.arange(8)), MEMORY)
        moment += 1
    # In this order: before the collection began, while it deletes, when the file is gone.
    assert list(dict.fromkeys(outcomes)) == ["committed", "StoreError", "CorruptStoreError"]
    assert outcomes == sorted(outcomes, key=["committed", "StoreError", "CorruptStoreError"].index)


@pytest.mark.parametrize("step", ["list_files", "open", "size_bytes", "publish"])
def test_a_collection_at_any_moment_of_a_commit_loses_nothing(tmp_path: Path, step: str):
    build_store(tmp_path, MEMORY[:4])
    shard = write_rows(tmp_path, "late", MEMORY[4:], first=4)
    collected = []

    def intrude(number: int, name: str) -> None:
        if name == step and not collected:
            collected.append(collect(tmp_path, grace_s=0))

    # Its shard was collected first, whatever the moment.
    with pytest.raises(CorruptStoreError, match=r"shards/late\.arrow"):
        append_shards(FaultyStorage(LocalStorage(tmp_path), before=intrude), SCHEMA, FINGERPRINT, [shard])
    assert collected[0].files == ("shards/late.arrow",)
    assert (verify(tmp_path).ok, MemoryStore.open(tmp_path).n_documents) == (True, 4)


def test_a_writer_that_slept_through_collections_cannot_commit_under_an_old_number(tmp_path: Path):
    storage = LocalStorage(tmp_path)
    asleep = build_store(tmp_path, MEMORY)
    for number in range(3):
        append(storage, f"a{number}", 50 + number)
    collect(tmp_path, keep_versions=1, grace_s=0)
    late = Manifest(asleep.version + 1, asleep.version, SCHEMA, FINGERPRINT, asleep.shards)
    with pytest.raises(CommitConflictError, match="version 2"):
        publish_manifest(storage, late)
    assert MemoryStore.open(tmp_path).n_documents == 11


def test_nothing_is_deleted_while_a_manifest_is_unreadable(tmp_path: Path):
    build_store(tmp_path, MEMORY)
    append(LocalStorage(tmp_path), "a", 50)
    (tmp_path / "manifests/00000001.json").write_bytes(b"{")
    write_rows(tmp_path, "orphan", MEMORY[:1], first=90)
    with pytest.raises(CorruptStoreError, match=r"00000001\.json"):
        collect(tmp_path, grace_s=0)
    assert "orphan" in shard_names(tmp_path)
