from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from clara_dist.core import cosine_scores
from clara_dist.errors import RetrievalError, StoreError
from clara_dist.retrieval import MemoryBank
from tiny_stores import open_store, random_memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gather_gives_the_stored_values_and_zeros_for_padding(tmp_path: Path, dtype: torch.dtype):
    memory = random_memory(20)
    bank = MemoryBank(open_store(tmp_path, memory, [8, 12]), dtype=dtype)
    rows = torch.tensor([[19, 0, -1], [7, 8, 7]])
    gathered = bank.gather(rows)
    assert (gathered.shape, gathered.dtype) == ((2, 3, 2, 8), dtype)
    assert not gathered.requires_grad
    expected = torch.from_numpy(memory[rows.numpy()]).to(dtype)
    expected[0, 2] = 0
    assert torch.equal(gathered, expected)


def test_gather_refuses_rows_outside_the_store(tmp_path: Path):
    bank = MemoryBank(open_store(tmp_path, random_memory(5)))
    for row in (5, -2):
        with pytest.raises(StoreError, match="no such row"):
            bank.gather(torch.tensor([[0, row]]))


def test_search_ranks_as_cosine_scores_of_the_gathered_memories(tmp_path: Path):
    memory = random_memory(60)
    bank = MemoryBank(open_store(tmp_path, memory, [25, 35]))
    query = torch.randn(4, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    rows_BN = bank.search(query, 60)
    scores_BN = cosine_scores(query, bank.gather(rows_BN)).detach()
    assert [sorted(row) for row in rows_BN.tolist()] == [list(range(60))] * 4
    # Both are fp32 cosines, in different orders of summing: neighbours may swap only within 1e-6.
    assert (scores_BN.diff(dim=1) <= 1e-6).all()


def test_where_restricts_the_search_and_nothing_else(tmp_path: Path):
    memory = random_memory(40)
    metadata = [{"split": "train" if i % 4 else "held_out"} for i in range(40)]
    store = open_store(tmp_path, memory, metadata=metadata, metadata_columns={"split": "string"})
    bank = MemoryBank(store, where={"split": ("train",)})
    query = torch.from_numpy(memory[[0, 8]].astype(np.float32))
    rows_BN = bank.search(query, 30)
    assert all(row % 4 for row in rows_BN.flatten().tolist())
    assert torch.equal(MemoryBank(store, where="split = 'train'").search(query, 30), rows_BN)
    assert MemoryBank(store, where={}).search(query, 1).tolist() == [[0], [8]]
    assert [rows.tolist() for rows in bank.rows_of(["doc-8", "absent"])] == [[8], []]
    assert torch.equal(bank.gather(torch.tensor([8])), torch.from_numpy(memory[[8]]).float())
    with pytest.raises(RetrievalError, match=r"1 \.\. 30"):
        bank.search(query, 31)
    nothing = MemoryBank(store, where={"split": ("elsewhere",)})
    with pytest.raises(RetrievalError, match="nothing to search"):
        nothing.search(query, 1)
