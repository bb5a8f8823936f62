"""A shard whose memories are written into its bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clara_dist.errors import StoreError
from clara_dist.store import StoreSchema
from clara_dist.store.draft import ShardDraft
from clara_dist.store.schema import nonfinite_rows
from clara_dist.store.shard import serialize
from clara_dist.store.writer import publish_shard
from tiny_stores import random_memory

SCHEMA = StoreSchema(3, 16, {"year": "int64"})


def columns(n: int) -> dict[str, Any]:
    return {
        "doc_ids": [f"d{i}" for i in range(n)],
        "titles": [""] * n,
        "texts": [f"naïve {i}" for i in range(n)],
        "metadata": [{"year": i} if i % 2 else {} for i in range(n)],
        "n_tokens": range(n),
        "truncated": [i == 2 for i in range(n)],
    }


@pytest.mark.parametrize("n", [1, 7, 1000])
def test_the_bytes_are_those_of_the_whole_table(n: int) -> None:
    memory_SMD = random_memory(n, 3, 16)
    draft = ShardDraft(SCHEMA.to_table(**columns(n), memory_SMD=None), SCHEMA)
    draft.memory_SMD[:] = memory_SMD
    assert draft.finish().to_pybytes() == serialize(SCHEMA.to_table(**columns(n), memory_SMD=memory_SMD)).to_pybytes()


def test_a_memory_that_is_not_finite_is_refused_by_name() -> None:
    draft = ShardDraft(SCHEMA.to_table(**columns(9), memory_SMD=None), SCHEMA)
    draft.memory_SMD[:] = 1
    draft.memory_SMD[7, 2, 15] = np.inf
    with pytest.raises(StoreError, match=r"(?s)document 'd7' does not fit float16.*inf \(1 of 9"):
        draft.finish()


def test_every_block_of_rows_is_looked_at() -> None:
    memory_SMD = np.zeros((5, 1, 1 << 20), np.float16)  # blocks of one row
    memory_SMD[3, 0, 77] = np.nan
    assert nonfinite_rows(memory_SMD).tolist() == [False, False, False, True, False]


def test_memories_are_held_once(tmp_path: Path) -> None:
    """From the empty draft to the published file, Arrow allocates the file's size and next to nothing more."""
    n, schema = 256, StoreSchema(16, 1024)
    before = pa.total_allocated_bytes()
    draft = ShardDraft(schema.to_table(**columns(n), memory_SMD=None), schema)
    draft.memory_SMD[:] = 1
    data = draft.finish()
    publish_shard(tmp_path, data, "s")
    assert data.size > draft.memory_SMD.nbytes == 8 << 20
    assert pa.total_allocated_bytes() - before < data.size + (1 << 16)
