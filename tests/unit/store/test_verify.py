from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clara_dist.errors import CorruptStoreError, StoreError
from clara_dist.store import MemoryStore, StoreSchema, commit, describe_shard, info, verify, write_shard
from clara_dist.store.manifest import Manifest, publish_manifest
from clara_dist.store.storage import LocalStorage
from tiny_stores import FINGERPRINT, build_store, random_memory, write_rows

SCHEMA = StoreSchema(2, 8)


def rewrite(store: Path, column: str, values: pa.Array) -> None:
    """Commit a store whose one shard was written with a wrong column: the checksum is right, the contents are not."""
    write_rows(store / "right", "unit", random_memory(4))
    batch = pa.ipc.open_file(pa.memory_map(str(store / "right/shards/unit.arrow"))).read_all()
    index = batch.schema.get_field_index(column)
    shard = write_shard(store, batch.set_column(index, batch.schema.field(column), values), "unit")
    publish_manifest(LocalStorage(store), Manifest(1, None, SCHEMA, FINGERPRINT, (shard,)))


def memory_array(memory_SMD: np.ndarray) -> pa.ExtensionArray:
    storage = pa.FixedSizeListArray.from_arrays(pa.array(memory_SMD.reshape(-1)), memory_SMD[0].size)
    return pa.ExtensionArray.from_storage(SCHEMA.memory_type, storage)


def test_a_sound_store_is_ok_and_counted(tmp_path: Path):
    manifest = build_store(tmp_path, random_memory(9), [4, 0, 5])
    report = verify(tmp_path)
    assert report.ok
    assert (report.version, report.n_shards, report.n_documents) == (1, 3, 9)
    assert report.size_bytes == sum(p.stat().st_size for p in (tmp_path / "shards").iterdir()) == manifest.size_bytes
    told = info(tmp_path)
    assert (told.manifest, told.versions) == (manifest, (1,))


def test_every_flipped_bit_of_a_shard_is_found(tmp_path: Path):
    build_store(tmp_path, random_memory(9), [4, 5])
    path = tmp_path / "shards/unit-00001.arrow"
    data = path.read_bytes()
    generator = np.random.default_rng(0)
    for position in [0, len(data) - 1, *generator.choice(len(data), 60, replace=False)]:
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        report = verify(tmp_path)
        assert [problem.file for problem in report.problems] == ["shards/unit-00001.arrow"], position
    path.write_bytes(data)
    assert verify(tmp_path).ok


def test_missing_truncated_and_longer_shards_are_all_reported_at_once(tmp_path: Path):
    build_store(tmp_path, random_memory(12), [3, 3, 3, 3])
    shards = [tmp_path / f"shards/unit-0000{i}.arrow" for i in range(4)]
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-1])
    shards[3].write_bytes(shards[3].read_bytes() + b"x")
    report = verify(tmp_path)
    assert [problem.file[-7] for problem in report.problems] == ["0", "1", "3"]
    assert "missing" in report.problems[0].what
    assert "the manifest says" in report.problems[1].what


def test_unlisted_files_are_listed_but_are_no_damage(tmp_path: Path):
    first = build_store(tmp_path, random_memory(3))
    added = write_rows(tmp_path, "next", random_memory(2), first=3)
    (tmp_path / "shards/stray.txt").write_text("x")
    assert verify(tmp_path).unlisted_files == ("shards/next.arrow", "shards/stray.txt")
    assert verify(tmp_path).ok
    commit(tmp_path, SCHEMA, FINGERPRINT, [*first.shards, added], parent=1)
    # Listed by a newer version than the one that is verified: no stray.
    assert verify(tmp_path, version=1).unlisted_files == ("shards/stray.txt",)


def test_norms_that_do_not_match_are_found(tmp_path: Path):
    norms = np.sqrt((random_memory(4).astype(np.float64) ** 2).sum((1, 2))).astype(np.float32)
    norms[2] *= np.float32(1 + 1e-5)
    rewrite(tmp_path, "norm", pa.array(norms))
    problems = [p.what for p in verify(tmp_path).problems]
    assert problems == ["1 norms do not match their memories, the first of document 'doc-2'"]


def test_memories_that_are_not_finite_are_found(tmp_path: Path):
    memory = random_memory(4)
    memory[1, 0, 3], memory[3, 1, 7] = np.inf, np.nan
    rewrite(tmp_path, "memory", memory_array(memory))
    assert [p.what for p in verify(tmp_path).problems] == ["2 memories are not finite, the first of document 'doc-1'"]


def test_a_document_that_comes_twice_is_found(tmp_path: Path):
    a, b = write_rows(tmp_path, "a", random_memory(3)), write_rows(tmp_path, "b", random_memory(3), first=2)
    publish_manifest(LocalStorage(tmp_path), Manifest(1, None, SCHEMA, FINGERPRINT, (a, b)))
    problems = [p.what for p in verify(tmp_path).problems]
    assert problems == ["document 'doc-2' comes 2 times, in shards/a.arrow, shards/b.arrow"]


def test_nulls_and_broken_utf8_are_found(tmp_path: Path):
    rewrite(tmp_path / "nulls", "n_tokens", pa.array([1, None, 3, 4], pa.int32()))
    assert "column n_tokens holds nulls" in verify(tmp_path / "nulls").problems[0].what
    with pytest.raises(CorruptStoreError, match=r"shards/unit\.arrow"):
        MemoryStore.open(tmp_path / "nulls")
    texts = pa.Array.from_buffers(
        pa.large_string(), 4, [None, pa.py_buffer(np.arange(5, dtype=np.int64)), pa.py_buffer(b"a\xffcd")]
    )
    rewrite(tmp_path / "utf8", "text", texts)
    assert "UTF8" in verify(tmp_path / "utf8").problems[0].what
    with pytest.raises(CorruptStoreError, match=r"shards/unit\.arrow"):
        MemoryStore.open(tmp_path / "utf8").documents([1])


def test_a_damaged_manifest_is_reported(tmp_path: Path):
    build_store(tmp_path, random_memory(3))
    path = tmp_path / "manifests/00000001.json"
    path.write_bytes(path.read_bytes()[:-20])
    report = verify(tmp_path)
    assert not report.ok
    assert [problem.file for problem in report.problems] == ["manifests/00000001.json"]
    with pytest.raises(CorruptStoreError, match=r"manifests/00000001\.json"):
        info(tmp_path)


def test_no_store_is_an_error_not_a_report(tmp_path: Path):
    with pytest.raises(StoreError, match="no memory store"):
        verify(tmp_path / "absent")


def test_a_file_that_is_no_shard_cannot_be_described(tmp_path: Path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/x.arrow").write_bytes(b"not arrow")
    with pytest.raises(CorruptStoreError, match=r"shards/x\.arrow"):
        describe_shard(tmp_path, SCHEMA, "x")
