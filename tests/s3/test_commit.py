"""Commits to a bucket: one writer wins, lost answers are no lost commits, a version is there whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from clara_dist.errors import CommitConflictError, StorageError, StoreError
from clara_dist.store import Manifest, MemoryStore, ShardInfo, StoreSchema, commit, verify
from clara_dist.store.storage import open_storage
from fault_proxy import Fault, FaultProxy
from tiny_stores import FINGERPRINT, build_store, random_memory, write_rows

Url = Callable[[str], str]
SCHEMA = StoreSchema(2, 8)
MEMORY = random_memory(4)
MANIFEST_PUT = r"^PUT .*/manifests/"


def write(url: str, name: str, first: int = 0) -> ShardInfo:
    return write_rows(url, name, MEMORY, first=first)  # type: ignore[arg-type]


@pytest.mark.parametrize("fault", ["lost_answer", "reset_after", "slow_down", "reset"])
def test_a_commit_whose_answer_is_lost_is_a_commit(s3_url: Url, proxy: FaultProxy, fault: Fault) -> None:
    url = s3_url("store")
    shard = write(url, "a")
    rule = proxy.fail(fault, MANIFEST_PUT)
    assert commit(url, SCHEMA, FINGERPRINT, [shard]).version == 1
    assert rule.times == 0
    assert open_storage(url).list_files("manifests") == ["00000001.json"]
    assert np.array_equal(MemoryStore.open(url).take_memory(np.arange(4)), MEMORY)


@pytest.mark.parametrize("fault", [None, "slow_down", "reset", "lost_answer"])
def test_a_commit_that_comes_second_fails_and_changes_nothing(
    s3_url: Url, s3_port: int, proxy: FaultProxy, fault: Fault | None
) -> None:
    """The other writer commits between this one's look at the store and its put, in the worst case during a retry."""
    url = s3_url("store")
    direct = url.replace(str(proxy.port), str(s3_port))
    base = commit(url, SCHEMA, FINGERPRINT, [write(url, "base")])
    ours, theirs = write(url, "ours", first=10), write(url, "theirs", first=20)

    def win() -> None:
        commit(direct, SCHEMA, FINGERPRINT, [*base.shards, theirs], parent=1)

    if fault is None:
        win()
    else:
        proxy.fail(fault, MANIFEST_PUT, before=win)
    with pytest.raises(CommitConflictError):
        commit(url, SCHEMA, FINGERPRINT, [*base.shards, ours], parent=1)
    assert [shard.file for shard in MemoryStore.open(url).manifest.shards] == [base.shards[0].file, theirs.file]
    # Nothing is lost: the shard is there, and the commit is made on top of the winner's.
    after = commit(url, SCHEMA, FINGERPRINT, [*base.shards, theirs, ours], parent=2)
    assert (after.version, after.n_documents) == (3, 12)
    assert verify(url).ok


def test_writers_that_race_lose_nothing(s3_url: Url) -> None:
    url = s3_url("race")
    build_store(url, MEMORY)  # type: ignore[arg-type]

    def append(writer: int) -> int:
        shard = write(url, f"writer-{writer}", first=100 * (writer + 1))
        for attempt in range(20):
            current = MemoryStore.open(url).manifest
            try:
                commit(url, SCHEMA, FINGERPRINT, [*current.shards, shard], parent=current.version)
                return attempt
            except CommitConflictError:
                continue
        raise AssertionError("twenty conflicts in a row")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(append, range(4)))
    store = MemoryStore.open(url)
    assert store.version == 5
    wanted = {f"doc-{first + i}" for first in (0, 100, 200, 300, 400) for i in range(4)}
    assert set(store.doc_ids(np.arange(20))) == wanted
    assert verify(url).ok


def test_a_service_that_stays_down_fails_and_leaves_the_old_version(
    s3_url: Url, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = s3_url("store")
    before: Manifest = commit(url, SCHEMA, FINGERPRINT, [write(url, "a")])
    shard = write(url, "b", first=10)
    monkeypatch.setattr("clara_dist.store.remote._RETRY", {"max_retries": 1})
    proxy.fail("server_error", MANIFEST_PUT, times=2)
    with pytest.raises(StoreError, match=r"cannot write s3://bucket\d+/store/manifests/00000002\.json"):
        commit(url, SCHEMA, FINGERPRINT, [*before.shards, shard], parent=1)
    assert MemoryStore.open(url).version == 1
    assert commit(url, SCHEMA, FINGERPRINT, [*before.shards, shard], parent=1).version == 2


def test_a_service_that_is_down_is_no_damage(s3_url: Url, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a failing network says of a store must not read like what a broken disk says."""
    url = s3_url("store")
    build_store(url, MEMORY)  # type: ignore[arg-type]
    monkeypatch.setattr("clara_dist.store.remote._RETRY", {"max_retries": 1})
    proxy.choose = lambda line: "server_error" if "/manifests/" in line or "/shards/" in line else None
    for use in (MemoryStore.open, verify):
        with pytest.raises(StorageError, match="cannot read s3://"):
            use(url)


def test_a_bucket_copied_to_a_disk_is_the_same_store(s3_url: Url, tmp_path: Path) -> None:
    url = s3_url("store")
    build_store(url, MEMORY, [2, 2])  # type: ignore[arg-type]
    storage = open_storage(url)
    for folder in ("manifests", "shards"):
        (tmp_path / folder).mkdir()
        for name in storage.list_files(folder):
            with storage.open(f"{folder}/{name}") as source:
                (tmp_path / folder / name).write_bytes(source.read())
    assert MemoryStore.open(tmp_path).manifest == MemoryStore.open(url).manifest
    assert verify(tmp_path).ok
