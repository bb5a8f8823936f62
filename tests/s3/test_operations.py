"""All operations on a store in a bucket that fails at random do what they do on a disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from clara_dist.store import MemoryStore, StoreSchema, verify
from clara_dist.store.append import append_shards, append_store
from clara_dist.store.collect import collect
from clara_dist.store.compact import compact
from clara_dist.store.delete import delete, restore
from clara_dist.store.storage import StoreLocation, open_storage
from fault_proxy import FaultProxy, at_random
from tiny_stores import FINGERPRINT, build_store, random_memory, write_rows

Url = Callable[[str], str]
SCHEMA = StoreSchema(2, 8)


def a_life(store: StoreLocation, other: StoreLocation) -> None:
    """Everything that can be done to a store, once."""
    build_store(other, random_memory(4, seed=1), [4])  # type: ignore[arg-type]
    build_store(store, random_memory(6), [3, 3])  # type: ignore[arg-type]
    shard = write_rows(store, "more", random_memory(5, seed=2), first=6)  # type: ignore[arg-type]
    append_shards(store, SCHEMA, FINGERPRINT, [shard])
    delete(store, doc_ids=["doc-1", "doc-2", "doc-7"])
    append_store(store, other, on_existing="replace")
    compact(store)
    delete(store, doc_ids=["doc-10"])
    restore(store, 5)
    collect(store, keep_versions=1, grace_s=0)


def contents(store: StoreLocation) -> tuple[int, list[str], np.ndarray]:
    opened = MemoryStore.open(store)
    rows = np.arange(opened.n_documents)
    return opened.version, opened.doc_ids(rows), opened.take_memory(rows)


def test_a_store_in_a_failing_bucket_lives_as_on_a_disk(s3_url: Url, proxy: FaultProxy, tmp_path: Path) -> None:
    a_life(tmp_path / "store", tmp_path / "other")
    proxy.choose = at_random(seed=7)
    a_life(s3_url("store"), s3_url("other"))
    found, expected = contents(s3_url("store")), contents(tmp_path / "store")
    proxy.choose = None
    assert found[:2] == expected[:2]
    assert np.array_equal(found[2], expected[2])
    assert found[1][-4:] == ["doc-0", "doc-1", "doc-2", "doc-3"]
    report = verify(s3_url("store"))
    assert report.ok, report.problems
    remote, local = open_storage(s3_url("store")), open_storage(tmp_path / "store")
    for folder in ("manifests", "shards", "deletions"):
        assert len(remote.list_files(folder)) == len(local.list_files(folder)), folder


def test_old_versions_are_read_from_the_cache(s3_url: Url) -> None:
    url = s3_url("store")
    build_store(url, random_memory(6), [3, 3])  # type: ignore[arg-type]
    delete(url, doc_ids=["doc-4"])
    assert len(MemoryStore.open(url, 1)) == 6
    store = MemoryStore.open(url)
    assert store.doc_ids(np.arange(5)) == ["doc-0", "doc-1", "doc-2", "doc-3", "doc-5"]
    assert len(os.listdir(os.environ["CLARA_CACHE_DIR"])) == 2, "a deletion changes no shard"
