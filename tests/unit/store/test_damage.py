"""Flipped bits are found in every file of a store, at every place."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from clara_dist.errors import CorruptStoreError
from clara_dist.store import MemoryStore, collect, delete, verify
from clara_dist.store.deletions import read_deletions
from clara_dist.store.manifest import read_manifest
from clara_dist.store.storage import LocalStorage
from clara_dist.store.verify import verify_shard
from tiny_stores import build_store, random_memory


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Version 2, the newest, has two shards of which rows are deleted."""
    build_store(tmp_path / "store", random_memory(5, m=1, d=4), [2, 3], metadata_columns={"year": "int64"})
    delete(tmp_path / "store", doc_ids=["doc-1", "doc-3"])
    return tmp_path / "store"


def flipped(path: Path) -> Iterator[int]:
    """Flip one bit of each byte, in turn all eight; gives the byte's position."""
    data = path.read_bytes()
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        yield position
    path.write_bytes(data)


def test_in_every_byte_of_a_shard(store: Path):
    storage = LocalStorage(store)
    manifest = read_manifest(storage)
    shard = manifest.shards[1]
    count = 0
    for place in flipped(store / shard.file):
        _, problems = verify_shard(storage, shard, manifest.schema)
        assert [problem.file for problem in problems] == [shard.file], place
        count += 1
    assert count == shard.size_bytes > 2000
    assert verify(store).ok


def test_in_every_byte_of_a_manifest(store: Path):
    storage = LocalStorage(store)
    path = store / "manifests/00000002.json"
    count = 0
    for _ in flipped(path):
        with pytest.raises(CorruptStoreError, match=r"manifests/00000002\.json"):
            read_manifest(storage)
        count += 1
    assert count == path.stat().st_size
    assert verify(store).ok


def test_in_every_byte_of_a_list_of_deletions(store: Path):
    storage = LocalStorage(store)
    manifest = read_manifest(storage)
    assert manifest.deletions is not None
    count = 0
    for _ in flipped(store / manifest.deletions.file):
        with pytest.raises(CorruptStoreError, match=r"deletions/"):
            read_deletions(storage, manifest)
        count += 1
    assert count == manifest.deletions.size_bytes


def test_verify_and_opening_tell_of_damage_in_any_file(store: Path):
    rng = np.random.default_rng(0)
    collect(store, keep_versions=1, grace_s=0)
    sound = verify(store)
    assert sound.ok
    assert sound.size_bytes > 0
    for path in sorted(path for path in store.rglob("*") if path.is_file()):
        data = path.read_bytes()
        for position in (0, len(data) - 1, *rng.integers(0, len(data), 3)):
            damaged = bytearray(data)
            damaged[position] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            report = verify(store)
            assert str(path.relative_to(store)) in {problem.file for problem in report.problems}, (path, position)
        path.write_bytes(data)
    assert verify(store).ok


def test_a_list_of_another_version_is_not_taken(store: Path):
    first = read_manifest(LocalStorage(store)).deletions
    delete(store, doc_ids=["doc-0"])
    second = read_manifest(LocalStorage(store)).deletions
    assert first is not None
    assert second is not None
    shutil.copy(store / first.file, store / second.file)
    with pytest.raises(CorruptStoreError, match=second.file):
        MemoryStore.open(store)
