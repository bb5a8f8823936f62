"""An index in an object store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from clara_dist.config.index import IndexConfig
from clara_dist.errors import CorruptStoreError
from clara_dist.retrieval.index import open_index
from clara_dist.retrieval.index_build import build_index
from clara_dist.retrieval.search import ExactSearcher
from clara_dist.store import MemoryStore, append_store
from clara_dist.store.storage import open_storage
from tiny_stores import build_store, random_memory


def test_an_index_is_built_extended_and_checked_in_a_bucket(
    s3_url: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLARA_CACHE_DIR", str(tmp_path / "cache"))
    url = s3_url("store")
    build_store(tmp_path / "local", random_memory(300), [100, 200])
    append_store(url, str(tmp_path / "local"))
    said: list[str] = []
    config = IndexConfig(store=url, factory="SQ8")
    build_index(config, progress=said.append)
    assert [line.split(":")[0] for line in said] == ["trained SQ8 on 300 of 300 rows", "shard 1 of 2", "shard 2 of 2"]
    assert build_index(config, progress=said.append).measured is not None
    assert len(said) == 3
    store = MemoryStore.open(url)
    query = torch.from_numpy(random_memory(4, seed=7).astype(np.float32))
    assert torch.equal(open_index(store).search(query, 5).rows_BK, ExactSearcher(store).search(query, 5).rows_BK)
    storage = open_storage(url)
    codes = next(name for name in storage.list_files("index") if name.endswith(".faiss"))
    storage.publish(f"index/{codes}", b"other bytes", exclusive=False)
    with pytest.raises(CorruptStoreError, match="11 bytes with checksum"):
        open_index(store)
