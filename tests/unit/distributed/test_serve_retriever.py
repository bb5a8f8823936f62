"""A retriever: its index, its part of the store, the version that it is asked for."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from clara_dist.config.index import IndexConfig
from clara_dist.config.serve import ServeConfig
from clara_dist.distributed.serve_retriever import Retrieved, Retriever
from clara_dist.errors import RetrievalError
from clara_dist.retrieval.index_build import build_index
from clara_dist.store import delete
from tiny_stores import FINGERPRINT, build_store, random_memory


def search(retriever: Retriever, query_BX: np.ndarray, top_k: list[int], version: int = 1) -> Retrieved:
    ask = {"version": version, "fingerprint": FINGERPRINT.digest, "with_memory": False}
    return asyncio.run(retriever.search(query_BX, top_k, [None] * len(top_k), **ask))


def test_an_index_is_used_where_there_is_one(tmp_path: Path) -> None:
    build_store(tmp_path, random_memory(300))
    settings = {"model": "m", "store": str(tmp_path)}
    with pytest.raises(RetrievalError, match="no complete index"):
        Retriever(ServeConfig(**settings, index="required"))
    query = random_memory(3, seed=4).reshape(3, -1).astype(np.float32)
    exact = search(Retriever(ServeConfig(**settings)), query, [2, 5, 1])
    # Codes of one number choose the ten rows that are scored: only that way is the result another.
    build_index(IndexConfig(store=str(tmp_path), factory="PCA1,SQ8", rescored=1, min_recall=0), progress=lambda _: None)
    for index, same in (("none", True), ("auto", False), ("required", False)):
        found = search(Retriever(ServeConfig(**settings, index=index)), query, [2, 5, 1])
        assert [len(documents) for documents in found.documents] == [2, 5, 1]
        assert (found.scores == exact.scores) is same


def test_an_index_serves_the_parts_of_its_store(tmp_path: Path) -> None:
    """Each takes the codes of its own shards, and names the rows of the whole store."""
    build_store(tmp_path, random_memory(300), [100, 150, 50])
    build_index(IndexConfig(store=str(tmp_path), factory="PCA1,SQ8", rescored=1, min_recall=0), progress=lambda _: None)
    query = random_memory(3, seed=4).reshape(3, -1).astype(np.float32)
    config = ServeConfig(model="m", store=str(tmp_path), index="required", retriever_shards=2)
    found = [search(Retriever(config, shard), query, [5] * 3) for shard in range(2)]
    for b in range(3):
        by_row = {d.doc_id: int(row) for each in found for d, row in zip(each.documents[b], each.rows[b], strict=True)}
        assert {f"doc-{row}" for row in by_row.values()} == set(by_row)
        rows_of_part = [set(each.rows[b].tolist()) for each in found]
        assert rows_of_part[0] <= set(range(100, 250))
        assert rows_of_part[1] <= {*range(100), *range(250, 300)}


def test_the_version_that_is_asked_for_is_searched(tmp_path: Path) -> None:
    build_store(tmp_path, random_memory(300))
    settings = {"model": "m", "store": str(tmp_path)}
    query = random_memory(1, seed=4).reshape(1, -1).astype(np.float32)
    retriever = Retriever(ServeConfig(**settings))
    first = search(retriever, query, [1])
    for _ in range(2):
        doc_id = search(retriever, query, [1], asyncio.run(retriever.newest())).documents[0][0].doc_id
        delete(str(tmp_path), doc_ids=[doc_id])
    assert asyncio.run(retriever.newest()) == 3
    found = [search(retriever, query, [1], version) for version in (1, 2, 3, 1)]
    assert [each.store_version for each in found] == [1, 2, 3, 1]
    assert found[3].scores == found[0].scores == first.scores
    assert len({each.documents[0][0].doc_id for each in found}) == 3
    assert asyncio.run(retriever.describe(2)).n_documents == 299
    assert asyncio.run(Retriever(ServeConfig(**settings, store_version=1)).newest()) == 1
