from __future__ import annotations

from pathlib import Path

import pytest

from clara_dist.errors import StoreError
from clara_dist.store import MemoryStore, StoreSchema, commit, verify
from clara_dist.store.passages import check_passages, passage_id, possible_parent
from tiny_stores import FINGERPRINT, random_memory, write_rows


def split_store(path: Path) -> MemoryStore:
    """Rows 0..7: a, then three passages of b, then c; in a second shard d#1 (a whole document), two passages of e."""
    memory = random_memory(8)
    shards = [
        write_rows(path, "one", memory[:5], doc_ids=["a", "b#1", "b#2", "b#3", "c"], parent_ids=["a", *"bbb", "c"]),
        write_rows(path, "two", memory[5:], doc_ids=["d#1", "e#1", "e#2"], parent_ids=["d#1", "e", "e"]),
    ]
    commit(path, StoreSchema(2, 8), FINGERPRINT, shards)
    return MemoryStore.open(path)


@pytest.mark.parametrize(
    ("doc_id", "parent"),
    [("a#1", "a"), ("a#b#12", "a#b"), ("a\n#3", "a\n"), ("a", None), ("a#0", None), ("a#01", None), ("#1", None)],
)
def test_which_document_a_name_could_be_a_passage_of(doc_id: str, parent: str | None):
    assert possible_parent(doc_id) == parent
    if parent is not None:
        assert passage_id(parent, int(doc_id.rpartition("#")[2])) == doc_id


@pytest.mark.parametrize(
    ("doc_ids", "parent_ids", "row"),
    [
        (["a#2"], ["a"], 0),
        (["a#1", "a#3"], ["a", "a"], 1),
        (["a#1", "b", "a#2"], ["a", "b", "a"], 2),
        (["a#1", "b#2"], ["a", "b"], 1),
        (["x"], ["a"], 0),
    ],
)
def test_passages_that_are_missing_or_out_of_order(doc_ids: list[str], parent_ids: list[str], row: int):
    with pytest.raises(StoreError, match=f"row {row} is not the passage of"):
        check_passages(doc_ids, parent_ids)


def test_documents_of_all_kinds_are_found_with_all_their_rows(tmp_path: Path):
    store = split_store(tmp_path)
    assert (store.n_documents, store.n_parents) == (8, 5)
    found = store.rows_of_documents(["b", "e", "a", "d#1", "c", "d", "b#2", "absent"])
    assert [rows.tolist() for rows in found] == [[1, 2, 3], [6, 7], [0], [5], [4], [], [2], []]
    assert [document.parent_id for document in store.documents([2, 5, 7, 0])] == ["b", "d#1", "e", "a"]
    assert [(shard.rows, shard.documents, shard.truncated) for shard in store.manifest.shards] == [(5, 3, 2), (3, 2, 1)]
    assert verify(tmp_path).ok


def test_without_passages_a_document_is_one_row(tmp_path: Path):
    info = write_rows(tmp_path, "one", random_memory(3))
    commit(tmp_path, StoreSchema(2, 8), FINGERPRINT, [info])
    store = MemoryStore.open(tmp_path)
    assert (store.n_documents, store.n_parents) == (3, 3)
    assert [rows.tolist() for rows in store.rows_of_documents(["doc-2", "no", "doc-0"])] == [[2], [], [0]]
    assert store.rows_of_documents([]) == []
