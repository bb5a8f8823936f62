from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from clara_dist.errors import CorruptStoreError, RetrievalError, StoreError
from clara_dist.retrieval import MemoryBank
from clara_dist.retrieval.search import ExactSearcher
from clara_dist.store import Fingerprint, MemoryStore, StoreSchema, commit, delete, info, restore, verify, write_shard
from clara_dist.store.storage import LocalStorage
from tiny_stores import FINGERPRINT, build_store, random_memory, write_rows

MEMORY = random_memory(30)
GONE = [0, 4, 5, 6, 13, 29]
LEFT = [i for i in range(30) if i not in GONE]


def names(numbers: list[int]) -> list[str]:
    return [f"doc-{i}" for i in numbers]


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    """30 documents in shards of 5, 0, 2 (all deleted), 10 and 13 rows; six are deleted."""
    metadata = [{"split": ["train", "test"][i % 2], "year": 2000 + i} if i != 8 else {} for i in range(30)]
    columns = {"split": "string", "year": "int64"}
    build_store(tmp_path, MEMORY, [5, 0, 2, 10, 13], metadata=metadata, metadata_columns=columns)
    report = delete(tmp_path, doc_ids=names(GONE))
    assert (report.n_deleted, report.missing, report.manifest.version) == (6, (), 2)
    return MemoryStore.open(tmp_path)


def test_no_reading_shows_a_deleted_document(store: MemoryStore, tmp_path: Path):
    rows = np.arange(store.n_documents)
    assert (len(store), store.n_documents, store.manifest.n_documents, store.manifest.n_deleted) == (24, 24, 24, 6)
    assert store.doc_ids(rows) == names(LEFT)
    assert [document.doc_id for document in store.documents(rows[::-1])] == names(LEFT[::-1])
    assert [document.n_tokens for document in store.documents(rows)] == [i + 3 for i in LEFT]
    np.testing.assert_array_equal(store.take_memory(rows), MEMORY[LEFT])
    assert store.rows_of(names(range(30))).tolist() == [LEFT.index(i) if i in LEFT else -1 for i in range(30)]
    odd = store.rows_where({"split": ("test",)})
    assert odd.tolist() == [row for row, i in enumerate(LEFT) if i % 2]
    assert [shard.rows for shard in store.shards] == [3, 0, 0, 9, 12]
    with pytest.raises(StoreError, match=r"integers 0 \.\. 23"):
        store.take_memory(np.array([24]))
    assert MemoryStore.open(tmp_path, version=1).n_documents == 30
    assert (info(tmp_path).n_documents, verify(tmp_path).ok) == (24, True)


@pytest.mark.parametrize("where", [None, {"split": ("train",)}])
def test_search_is_that_of_a_store_without_them(store: MemoryStore, tmp_path: Path, where):
    kept = [i for i in LEFT if where is None or (i % 2 == 0 and i != 8)]
    query_BX = torch.from_numpy(random_memory(7, seed=3).astype(np.float32)).flatten(1)
    flat = MEMORY[kept].reshape(len(kept), -1).astype(np.float64)
    cosines_BS = query_BX.double().numpy() @ (flat / np.linalg.norm(flat, axis=1, keepdims=True)).T
    expected = np.array(kept)[np.argsort(-cosines_BS, axis=1, kind="stable")]
    searcher = ExactSearcher(store, store.rows_where(where) if where else None)
    found = searcher.search(query_BX, len(kept))
    assert [store.doc_ids(rows) for rows in found.rows_BK.numpy()] == [names(row) for row in expected]
    with pytest.raises(RetrievalError, match=f"{len(kept)}"):
        searcher.search(query_BX, len(kept) + 1)
    bank = MemoryBank(store, where=where)
    best = bank.search(query_BX, 3)
    assert torch.equal(best, found.rows_BK[:, :3])
    np.testing.assert_array_equal(bank.gather(best).numpy(), MEMORY[expected[:, :3]].astype(np.float32))


def test_all_rows_of_a_store_without_deletions_are_views(tmp_path: Path):
    build_store(tmp_path, MEMORY)
    (shard,) = MemoryStore.open(tmp_path).shards
    rows = np.arange(30)
    assert shard.live is None
    assert shard.positions(rows) is rows


def test_unknown_ids_are_named_and_nothing_is_deleted(store: MemoryStore, tmp_path: Path):
    with pytest.raises(StoreError, match=r"2 of the documents.*nothing was deleted\n.*'doc-4', 'nope'"):
        delete(tmp_path, doc_ids=["doc-1", "nope", "doc-4"])
    assert MemoryStore.open(tmp_path).version == 2
    report = delete(tmp_path, doc_ids=["doc-1", "nope", "doc-4"], missing_ok=True)
    assert (report.n_deleted, report.missing, report.manifest.n_documents) == (1, ("doc-4", "nope"), 23)
    again = delete(tmp_path, doc_ids=["doc-1"], missing_ok=True)
    assert (again.n_deleted, again.manifest.version) == (0, 3)


def test_documents_are_deleted_by_metadata(store: MemoryStore, tmp_path: Path):
    report = delete(tmp_path, where={"split": ("train",), "year": (2002, 2010, 2011, 2004)})
    assert (report.n_deleted, report.manifest.n_documents) == (2, 22)
    assert MemoryStore.open(tmp_path).rows_of(["doc-2", "doc-10", "doc-11"]).tolist()[:2] == [-1, -1]
    with pytest.raises(StoreError, match="no metadata column 'lang'"):
        delete(tmp_path, where={"lang": ("fr",)})
    with pytest.raises(StoreError, match="either ids or a filter"):
        delete(tmp_path)


def test_a_parents_id_deletes_all_its_passages(tmp_path: Path):
    schema = StoreSchema(2, 8)
    ids = ["p#1", "p#2", "q", "r#1", "r#2"]
    table = schema.to_table(
        doc_ids=ids, parent_ids=["p", "p", "q", "r", "r"], titles=[""] * 5, texts=list("abcde"), metadata=[{}] * 5,
        memory_SMD=MEMORY[:5], n_tokens=[1] * 5, truncated=[False] * 5,
    )  # fmt: skip
    commit(tmp_path, schema, FINGERPRINT, [write_shard(tmp_path, table, "unit")])
    assert delete(tmp_path, doc_ids=["p", "r#1"]).n_deleted == 3
    store = MemoryStore.open(tmp_path)
    assert (store.doc_ids(range(2)), info(tmp_path).n_documents) == (["q", "r#2"], 2)


def test_deletions_survive_pickling_and_restore_brings_all_back(store: MemoryStore, tmp_path: Path):
    import pickle

    assert pickle.loads(pickle.dumps(store)).doc_ids(range(24)) == names(LEFT)
    assert restore(tmp_path, 1).version == 3
    assert MemoryStore.open(tmp_path).doc_ids(range(30)) == names(range(30))
    assert restore(tmp_path, 2).n_documents == 24
    assert MemoryStore.open(tmp_path).doc_ids(range(24)) == names(LEFT)
    with pytest.raises(StoreError, match="no version 9"):
        restore(tmp_path, 9)


def test_another_models_version_is_not_restored(tmp_path: Path):
    build_store(tmp_path, MEMORY[:3])
    other = Fingerprint({"base": "b2"})
    commit(tmp_path, StoreSchema(2, 8), other, [write_rows(tmp_path, "other", MEMORY[:3])], parent=1)
    with pytest.raises(StoreError, match="another model"):
        restore(tmp_path, 1)


def test_a_missing_list_hides_no_row_and_shows_none(store: MemoryStore, tmp_path: Path):
    deletions = store.manifest.deletions
    assert deletions is not None
    LocalStorage(tmp_path).delete(deletions.file)
    with pytest.raises(CorruptStoreError, match=r"deletions/\w+\.arrow"):
        MemoryStore.open(tmp_path)
    assert deletions.file in [problem.file for problem in verify(tmp_path).problems]
