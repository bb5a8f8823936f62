from __future__ import annotations

import numpy as np
import pytest
import torch

import clara_dist.retrieval.scan as scan_module
from clara_dist.retrieval.scan import PackedProducts, WideProducts, products_with


def random_case(n_rows: int, n_queries: int, size: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Memories, unit queries, and their products in float64."""
    generator = np.random.default_rng(1)
    memory = generator.standard_normal((n_rows, size)).astype(np.float16)
    query = generator.standard_normal((n_queries, size)) * np.exp(3 * generator.standard_normal((n_queries, size)))
    query /= np.linalg.norm(query, axis=1, keepdims=True)
    return torch.from_numpy(memory), torch.from_numpy(query), memory.astype(np.float64) @ query.T


@pytest.mark.parametrize("kind", [PackedProducts, WideProducts])
@pytest.mark.parametrize(("n_queries", "size"), [(1, 1), (1, 7), (3, 4096), (16, 130)])
def test_products_have_the_accuracy_of_fp32(kind: type[PackedProducts], n_queries: int, size: int):
    memory, query, expected = random_case(50, n_queries, size)
    products = kind(query)(memory, np.arange(50))
    assert (products.dtype, products.shape) == (torch.float32, (50, n_queries))
    # A query rounded to fp16 alone would be wrong by 1e-4 of the memory's length; measured: 1.3e-7.
    assert np.abs(products.numpy() - expected).max() < 1e-6 * np.linalg.norm(memory.double(), axis=1).max()


@pytest.mark.parametrize("kind", [PackedProducts, WideProducts])
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_scale_of_a_query_does_not_matter(kind: type[PackedProducts], scale: float):
    memory, query, expected = random_case(8, 2, 64)
    products = kind(query * scale)(memory, np.arange(8)) / scale
    assert np.allclose(products.numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [PackedProducts, WideProducts])
@pytest.mark.parametrize("step", [1, 2, 7], ids=["all", "every second", "few"])
def test_only_the_asked_rows_are_scored_by_any_number_of_threads(
    kind: type[PackedProducts], step: int, monkeypatch: pytest.MonkeyPatch
):
    memory, query, expected = random_case(101, 2, 32)
    rows = np.arange(3, 101, step)
    memory[np.setdiff1d(np.arange(101), rows)] = float("nan")  # deleted, or left out by a filter
    monkeypatch.setattr(scan_module, "_PACKED_CHUNK_BYTES", 640)  # 10 rows
    found = []
    for n_threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=n_threads: n)
        found.append(kind(query)(memory, rows))
        assert np.allclose(found[-1].numpy(), expected[rows], rtol=0, atol=1e-5)
    assert torch.equal(*found)


def test_few_queries_are_packed_and_many_are_matrices():
    kinds = [type(products_with(torch.ones((n, 4), dtype=torch.float64))) for n in (1, 16, 17)]
    assert kinds == [PackedProducts, PackedProducts, WideProducts]
