from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clara_dist.errors import FingerprintMismatchError, StoreError
from clara_dist.store import (
    Fingerprint,
    MemoryStore,
    StoreSchema,
    append_shards,
    delete,
    diff,
    export_parquet,
    import_parquet,
    verify,
)
from tiny_stores import FINGERPRINT, build_store, open_store, random_memory, write_rows

COLUMNS = {"year": "int64", "lang": "string", "score": "float64", "good": "bool"}


def build(path: Path, n: int = 12) -> np.ndarray:
    """Every finite float16 there is, among others; nulls in all typed columns; one row deleted."""
    memory = random_memory(n, m=16, d=512)
    bits = np.arange(1 << 16, dtype=np.uint16)
    finite = bits[(bits & 0x7C00) != 0x7C00]
    memory[:8].reshape(-1)[: len(finite)] = finite.view(np.float16)
    metadata = [{"year": 1990 + i, "lang": "fr", "score": i / 3, "good": i % 2 == 0} if i % 3 else {} for i in range(n)]
    build_store(path, memory, [7, 0, n - 7], metadata=metadata, metadata_columns=COLUMNS)
    delete(path, doc_ids=["doc-9"])
    return memory


def test_a_store_comes_back_bit_for_bit(tmp_path: Path):
    memory = build(tmp_path / "a")
    assert export_parquet(tmp_path / "a", tmp_path / "pq") == [f"part-0000{i}.parquet" for i in range(3)]
    manifest = import_parquet(tmp_path / "pq", tmp_path / "b")
    first, second = MemoryStore.open(tmp_path / "a"), MemoryStore.open(tmp_path / "b")
    assert diff(first, second).equal
    rows = np.arange(11)
    left = [i for i in range(12) if i != 9]
    np.testing.assert_array_equal(second.take_memory(rows).view(np.uint16), memory[left].view(np.uint16))
    assert second.documents(rows) == first.documents(rows)
    assert (second.fingerprint, second.manifest.schema) == (first.fingerprint, first.manifest.schema)
    assert second.rows_where({"good": (True,)}).tolist() == first.rows_where({"good": (True,)}).tolist()
    assert (manifest.n_documents, len(manifest.shards), verify(tmp_path / "b").ok) == (11, 2, True)
    assert import_parquet(tmp_path / "pq", tmp_path / "b").version == 1


def test_other_tools_read_float16_lists_and_typed_columns(tmp_path: Path):
    memory = build(tmp_path / "a")
    export_parquet(tmp_path / "a", tmp_path / "pq", version=1)
    table = pq.read_table(tmp_path / "pq/part-00002.parquet")
    assert table.schema.field("memory").type == pa.list_(pa.float16(), 16 * 512)
    assert "Float16" in str(pq.ParquetFile(tmp_path / "pq/part-00002.parquet").schema)
    assert table.column("doc_id").to_pylist() == [f"doc-{i}" for i in range(7, 12)]
    assert table.column("metadata.year").to_pylist() == [1997, 1998, None, 2000, 2001]
    flat = table.column("memory").combine_chunks().flatten().to_numpy()
    np.testing.assert_array_equal(flat, memory[7:].reshape(-1))


def test_a_store_without_documents_keeps_its_model(tmp_path: Path):
    append_shards(tmp_path / "a", StoreSchema(2, 8), FINGERPRINT, [])
    export_parquet(tmp_path / "a", tmp_path / "pq")
    import_parquet(tmp_path / "pq", tmp_path / "b")
    store = MemoryStore.open(tmp_path / "b")
    assert (store.n_documents, store.fingerprint) == (0, FINGERPRINT)


def test_an_import_appends_to_a_store_of_the_same_model_only(tmp_path: Path):
    build_store(tmp_path / "a", random_memory(4))
    export_parquet(tmp_path / "a", tmp_path / "pq")
    build_store(tmp_path / "b", random_memory(3), [3])
    with pytest.raises(StoreError, match="3 of the documents"):
        import_parquet(tmp_path / "pq", tmp_path / "b")
    assert import_parquet(tmp_path / "pq", tmp_path / "b", on_existing="skip").n_documents == 4
    shard = write_rows(tmp_path / "c", "x", random_memory(1), first=9)
    append_shards(tmp_path / "c", StoreSchema(2, 8), Fingerprint({"base": "b2"}), [shard])
    with pytest.raises(FingerprintMismatchError):
        import_parquet(tmp_path / "pq", tmp_path / "c")


def test_no_fingerprint_is_invented(tmp_path: Path):
    build_store(tmp_path / "a", random_memory(4))
    export_parquet(tmp_path / "a", tmp_path / "pq")
    path = tmp_path / "pq/part-00000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata(None), path)
    with pytest.raises(StoreError, match="does not say which model"):
        import_parquet(tmp_path / "pq", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_an_export_that_is_not_whole_is_refused_and_goes_on(tmp_path: Path):
    build(tmp_path / "a")
    export_parquet(tmp_path / "a", tmp_path / "pq")
    (tmp_path / "pq/part-00001.parquet").unlink()
    with pytest.raises(StoreError, match="is not whole"):
        import_parquet(tmp_path / "pq", tmp_path / "b")
    export_parquet(tmp_path / "a", tmp_path / "pq")
    assert import_parquet(tmp_path / "pq", tmp_path / "b").n_documents == 11
    delete(tmp_path / "a", doc_ids=["doc-1"])
    with pytest.raises(StoreError, match="other Parquet files"):
        export_parquet(tmp_path / "a", tmp_path / "pq")
    with pytest.raises(StoreError, match="no Parquet files"):
        import_parquet(tmp_path / "a", tmp_path / "b")


def test_damage_is_found(tmp_path: Path):
    build(tmp_path / "a")
    export_parquet(tmp_path / "a", tmp_path / "pq")
    path = tmp_path / "pq/part-00000.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"part-00000\.parquet"):
        import_parquet(tmp_path / "pq", tmp_path / "b")


def test_a_filtered_export_holds_its_rows_and_is_another_export(tmp_path: Path):
    metadata = [{"year": 2000 + i} if i % 4 else {} for i in range(12)]
    store = open_store(tmp_path / "a", random_memory(12), [5, 7], metadata=metadata, metadata_columns={"year": "int64"})
    delete(tmp_path / "a", doc_ids=["doc-7"])
    names = export_parquet(tmp_path / "a", tmp_path / "pq", where="year >= 2006")
    assert [pq.read_table(tmp_path / "pq" / name)["doc_id"].to_pylist() for name in names] == [
        [],
        ["doc-6", "doc-9", "doc-10", "doc-11"],
    ]
    with pytest.raises(StoreError, match="holds other Parquet files"):
        export_parquet(tmp_path / "a", tmp_path / "pq", where="year > 2006")
    import_parquet(tmp_path / "pq", tmp_path / "b")
    again = MemoryStore.open(tmp_path / "b")
    np.testing.assert_array_equal(again.take_memory(np.arange(4)), store.take_memory(np.array([6, 9, 10, 11])))
