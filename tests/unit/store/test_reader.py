from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clara_dist.errors import CorruptStoreError, FingerprintMismatchError, StoreError
from clara_dist.store import Fingerprint, MemoryStore, StoredDocument
from clara_dist.store.ids import IdIndex
from tiny_stores import FINGERPRINT, build_store, open_store, random_memory


def mappings_of(path: Path) -> list[tuple[int, int]]:
    """Address ranges of this process that are backed by the file."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(path)):
            start, end = line.split()[0].split("-")
            found.append((int(start, 16), int(end, 16)))
    return found


def test_memories_are_views_of_the_mapped_file(tmp_path: Path):
    memory = random_memory(4096, 4, 64)
    build_store(tmp_path, memory, [4000, 96])
    before, descriptors = pa.total_allocated_bytes(), len(os.listdir("/proc/self/fd"))
    store = MemoryStore.open(tmp_path)
    checksum = sum(float(shard.memory_SMD.astype(np.float32).sum()) for shard in store.shards)
    # 2 MiB of memories; footers and schemas take a few KiB.
    assert pa.total_allocated_bytes() - before < 64 << 10
    assert checksum == pytest.approx(float(memory.astype(np.float32).sum()), rel=1e-4)
    # Closed again: a store of ten thousand shards must not need ten thousand descriptors.
    assert len(os.listdir("/proc/self/fd")) == descriptors
    for shard, name in zip(store.shards, ["unit-00000", "unit-00001"], strict=True):
        mapped = mappings_of(tmp_path / f"shards/{name}.arrow")
        for view in (shard.memory_SMD, shard.norms_S):
            assert not view.flags.writeable
            low = view.ctypes.data
            assert any(start <= low and low + view.nbytes <= end for start, end in mapped)


def test_rows_run_over_shards_in_manifest_order(tmp_path: Path):
    memory = random_memory(10)
    store = open_store(tmp_path, memory, [3, 0, 6, 1])
    assert [shard.row_offset for shard in store.shards] == [0, 3, 3, 9]
    assert (len(store), store.n_documents, store.n_memory_tokens, store.hidden_size) == (10, 10, 2, 8)
    rows = np.array([[9, 0, 3], [3, 2, 8]])
    assert np.array_equal(store.take_memory(rows), memory[rows])
    assert store.take_memory(rows).dtype == np.float16
    assert store.take_memory(np.empty((0, 4), np.int64)).shape == (0, 4, 2, 8)
    assert np.array_equal(store.take_memory(np.int64(7)), memory[7])


def test_random_rows_over_many_shards_equal_numpy(tmp_path: Path):
    memory = random_memory(500)
    store = open_store(tmp_path, memory, [7] * 71 + [3])
    rows = np.random.default_rng(1).integers(0, 500, (40, 25))
    assert np.array_equal(store.take_memory(rows), memory[rows])
    assert store.doc_ids(rows) == [f"doc-{i}" for i in rows.reshape(-1)]


@pytest.mark.parametrize("rows", [[10], [-1], [0, 99], [1.0], [True]])
def test_rows_outside_the_store_are_errors(tmp_path: Path, rows: list[int]):
    store = open_store(tmp_path, random_memory(10))
    with pytest.raises(StoreError, match=r"expected: integers 0 \.\. 9"):
        store.take_memory(np.array(rows))


def test_documents_come_back_as_they_went_in(tmp_path: Path):
    store = open_store(tmp_path, random_memory(6), [2, 4], metadata=[{"x": [i, "ü"], "y": None} for i in range(6)])
    assert store.documents([5, 0, 5]) == [
        StoredDocument(
            doc_id=f"doc-{i}",
            parent_id=f"doc-{i}",
            title=f"Title {i}",
            text=f"Text of document {i}: naïve ☃",
            metadata={"x": [i, "ü"], "y": None},
            n_tokens=i + 3,
            truncated=i % 3 == 0,
        )
        for i in (5, 0, 5)
    ]
    assert store.documents([]) == []


def test_rows_of_finds_present_ids_and_marks_absent_ones(tmp_path: Path):
    store = open_store(tmp_path, random_memory(50), [20, 0, 30])
    wanted = ["doc-49", "nope", "doc-0", "doc-20", "doc-0", ""]
    rows = store.rows_of(wanted)
    assert rows.dtype == np.int64
    assert rows.tolist() == [49, -1, 0, 20, 0, -1]
    assert store.rows_of([]).tolist() == []


def test_hash_collisions_cost_a_comparison_and_never_a_wrong_row(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("clara_dist.store.ids._hashes", lambda ids: np.array([len(i) for i in ids], np.int64))
    ids = ["aa", "b", "cc", "d", "ee", "fff"]
    index = IdIndex([pa.array(ids[:4]), pa.array(ids[4:])], lambda rows: [ids[row] for row in rows])
    wanted = ["ee", "fff", "xx", "d", "b", "ggg", "aa", "cc", "hhhh"]
    assert index.rows_of(wanted).tolist() == [4, 5, -1, 3, 1, -1, 0, 2, -1]


def test_rows_where_filters_by_equality_on_typed_columns(tmp_path: Path):
    metadata = [{"split": "train" if i % 2 else "test", "year": 2000 + i % 3, "extra": i} for i in range(12)]
    metadata[5] = {"year": 2002}
    columns = {"split": "string", "year": "int64"}
    store = open_store(tmp_path, random_memory(12), [5, 7], metadata=metadata, metadata_columns=columns)

    def expected(**accepted: tuple) -> list[int]:
        return [i for i, row in enumerate(metadata) if all(row.get(k) in v for k, v in accepted.items())]

    assert store.rows_where({"split": ("train",)}).tolist() == expected(split=("train",))
    assert store.rows_where({"split": ("train", "test")}).tolist() == [i for i in range(12) if i != 5]
    both = {"split": ("train",), "year": (2000, 2001)}
    assert store.rows_where(both).tolist() == expected(**both)
    assert store.rows_where({"split": ()}).tolist() == []
    assert store.rows_where({}).tolist() == list(range(12))
    assert store.rows_where({"year": (1990,)}).dtype == np.int64
    with pytest.raises(StoreError, match="no metadata column 'extra'"):
        store.rows_where({"extra": (1,)})
    with pytest.raises(StoreError, match="'year' has a value of another type"):
        store.rows_where({"year": ("2000",)})


def test_another_models_fingerprint_is_refused_by_field(tmp_path: Path):
    store = open_store(tmp_path, random_memory(2))
    store.require_fingerprint(FINGERPRINT)
    with pytest.raises(FingerprintMismatchError, match="differ in: compressor"):
        store.require_fingerprint(Fingerprint({**FINGERPRINT.fields, "compressor": "c9"}), what="the model m")


def test_a_pickled_store_opens_the_same_version_elsewhere(tmp_path: Path):
    memory = random_memory(5)
    store = open_store(tmp_path, memory, [2, 3])
    data = pickle.dumps(store)
    assert len(data) < 1000
    copy = pickle.loads(data)
    assert copy.version == 1
    assert np.array_equal(copy.take_memory(np.arange(5)), memory)


@pytest.mark.parametrize("damage", ["missing", "truncated", "longer", "empty", "other-shard"])
def test_a_damaged_shard_is_refused_by_name(tmp_path: Path, damage: str):
    build_store(tmp_path, random_memory(6), [3, 3])
    path = tmp_path / "shards/unit-00001.arrow"
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "other-shard":
        build_store(tmp_path / "other", random_memory(3, 4, 4))
        other = (tmp_path / "other/shards/unit-00000.arrow").read_bytes()
        path.write_bytes(other[: len(data)].ljust(len(data), b"\0"))
    else:
        path.write_bytes({"truncated": data[:-100], "longer": data + b"\0", "empty": b""}[damage])
    with pytest.raises(CorruptStoreError, match=r"shards/unit-00001\.arrow"):
        MemoryStore.open(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format_version": 1}', "\ud83d"])
def test_a_torn_manifest_is_refused_by_name_and_no_older_version_is_taken(tmp_path: Path, text: str):
    build_store(tmp_path, random_memory(3))
    (tmp_path / "manifests/00000002.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(CorruptStoreError, match=r"manifests/00000002\.json"):
        MemoryStore.open(tmp_path)
    assert MemoryStore.open(tmp_path, version=1).n_documents == 3


def test_every_flipped_bit_of_a_manifest_is_found(tmp_path: Path):
    build_store(tmp_path, random_memory(3), metadata_columns={"number": "int64"})
    path = tmp_path / "manifests/00000001.json"
    data = path.read_bytes()
    generator = np.random.default_rng(0)
    for position in generator.choice(len(data), 200, replace=False):
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(CorruptStoreError, match=r"manifests/00000001\.json"):
            MemoryStore.open(tmp_path)


def test_a_newer_format_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("clara_dist.store.manifest.FORMAT_VERSION", 99)
    build_store(tmp_path, random_memory(3))
    monkeypatch.undo()
    with pytest.raises(StoreError, match="got: format 99") as caught:
        MemoryStore.open(tmp_path)
    assert not isinstance(caught.value, CorruptStoreError)
