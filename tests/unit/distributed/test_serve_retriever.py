"""The retriever's setting ``index``: what it searches with, and that it does not start without what it requires."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clara_dist.config.index import IndexConfig
from clara_dist.config.serve import ServeConfig
from clara_dist.distributed.serve_retriever import Retriever
from clara_dist.errors import RetrievalError
from clara_dist.retrieval.index_build import build_index
from clara_dist.store import delete
from tiny_stores import FINGERPRINT, build_store, random_memory


def test_an_index_is_used_where_there_is_one(tmp_path: Path) -> None:
    build_store(tmp_path, random_memory(300))
    settings = {"model": "m", "store": str(tmp_path)}
    with pytest.raises(RetrievalError, match="no complete index"):
        Retriever(ServeConfig(**settings, index="required"))
    query = random_memory(3, seed=4).reshape(3, -1).astype(np.float32)
    ask = {"fingerprint": FINGERPRINT.digest, "with_memory": False}
    exact = Retriever(ServeConfig(**settings)).search(query, [2, 5, 1], [None] * 3, **ask)
    # Codes of one number choose the ten rows that are scored: only that way is the result another.
    build_index(IndexConfig(store=str(tmp_path), factory="PCA1,SQ8", rescored=1, min_recall=0), progress=lambda _: None)
    for index, same in (("none", True), ("auto", False), ("required", False)):
        found = Retriever(ServeConfig(**settings, index=index)).search(query, [2, 5, 1], [None] * 3, **ask)
        assert [len(documents) for documents in found.documents] == [2, 5, 1]
        assert (found.scores == exact.scores) is same


def test_a_reply_names_the_version_that_was_searched(tmp_path: Path) -> None:
    build_store(tmp_path, random_memory(300))
    settings = {"model": "m", "store": str(tmp_path)}
    ask = {"fingerprint": FINGERPRINT.digest, "with_memory": False}
    query = random_memory(1, seed=4).reshape(1, -1).astype(np.float32)
    older = Retriever(ServeConfig(**settings))
    delete(str(tmp_path), doc_ids=[older.search(query, [1], [None], **ask).documents[0][0].doc_id])
    newer = Retriever(ServeConfig(**settings))
    assert [each.search(query, [1], [None], **ask).store_version for each in (older, newer)] == [1, 2]
    pinned = Retriever(ServeConfig(**settings, store_version=1))
    assert pinned.search(query, [1], [None], **ask).scores == older.search(query, [1], [None], **ask).scores
