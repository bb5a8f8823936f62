from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np
import pytest
import torch

import clara_dist.retrieval.scan as scan_module
from clara_dist.retrieval.scan import PackedProducts, Products, WideProducts, products_with


def random_case(n_rows: int, n_queries: int, size: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Memories, unit queries, and their products in float64."""
    generator = np.random.default_rng(1)
    memory = generator.standard_normal((n_rows, size)).astype(np.float16)
    query = generator.standard_normal((n_queries, size)) * np.exp(3 * generator.standard_normal((n_queries, size)))
    query /= np.linalg.norm(query, axis=1, keepdims=True)
    return torch.from_numpy(memory), torch.from_numpy(query), memory.astype(np.float64) @ query.T


@pytest.fixture(params=[1, 3], ids=["1 thread", "3 threads"])
def pool(request: pytest.FixtureRequest) -> Iterator[Executor]:
    with ThreadPoolExecutor(request.param) as threads:
        yield threads


def both(query: torch.Tensor, pool: Executor) -> list[Products]:
    return [PackedProducts(query, pool), WideProducts(query)]


@pytest.mark.parametrize(("n_queries", "size"), [(1, 1), (1, 7), (3, 4096), (16, 130)])
def test_products_have_the_accuracy_of_fp32(n_queries: int, size: int, pool: Executor):
    memory, query, expected = random_case(50, n_queries, size)
    for products_with_query in both(query, pool):
        products = products_with_query(memory, np.arange(50))
        assert (products.dtype, products.shape) == (torch.float32, (50, n_queries))
        # A query rounded to fp16 alone would be wrong by 1e-4 of the memory's length.
        assert np.abs(products.numpy() - expected).max() < 1e-6 * memory.double().norm(dim=1).max()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_scale_of_a_query_does_not_matter(scale: float, pool: Executor):
    memory, query, expected = random_case(8, 2, 64)
    for products in both(query * scale, pool):
        assert np.allclose((products(memory, np.arange(8)) / scale).numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("step", [1, 2, 7], ids=["all", "every second", "few"])
def test_only_the_asked_rows_are_scored(step: int, pool: Executor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scan_module, "_PACKED_CHUNK_BYTES", 640)  # 10 rows
    memory, query, expected = random_case(101, 2, 32)
    rows = np.arange(3, 101, step)
    memory[np.setdiff1d(np.arange(101), rows)] = float("nan")  # deleted, or left out by a filter
    for products in both(query, pool):
        assert np.allclose(products(memory, rows).numpy(), expected[rows], rtol=0, atol=1e-5)


def test_few_queries_are_packed_and_many_are_matrices(pool: Executor):
    kinds = [type(products_with(torch.ones((n, 4), dtype=torch.float64), pool)) for n in (1, 16, 17)]
    assert kinds == [PackedProducts, PackedProducts, WideProducts]
