from __future__ import annotations

import numpy as np
import pytest
import torch

import clara_dist.retrieval.scan as scan_module
from clara_dist.retrieval.scan import PackedProducts, RowProducts, WideProducts, products_with


def random_case(n_rows: int, n_queries: int, size: int) -> tuple[np.ndarray, torch.Tensor, np.ndarray]:
    """Memories and queries of length 1, some values of which are much smaller than others, and their cosines."""
    generator = np.random.default_rng(1)
    memory = generator.standard_normal((n_rows, size)).astype(np.float16)
    query = generator.standard_normal((n_queries, size)) * np.exp(3 * generator.standard_normal((n_queries, size)))
    unit = torch.nn.functional.normalize(torch.from_numpy(query))
    return memory, unit, cosines(memory.astype(np.float64) @ unit.numpy().T, memory)


def cosines(products: np.ndarray, memory: np.ndarray) -> np.ndarray:
    return products / np.linalg.norm(memory.astype(np.float64), axis=1, keepdims=True)


@pytest.mark.parametrize(("n_queries", "size"), [(1, 1), (1, 7), (1, 4096), (3, 4096), (32, 130), (33, 64), (100, 20)])
def test_products_are_wrong_by_no_more_than_they_say(n_queries: int, size: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scan_module, "_CACHED_BYTES", 1000)
    memory, query, expected = random_case(50, n_queries, size)
    kinds = [PackedProducts, WideProducts] + [RowProducts] * (n_queries == 1)
    for products_with_query in (kind(query) for kind in kinds):
        products = products_with_query(memory)
        assert (products.dtype, products.shape) == (np.float32, (50, n_queries))
        # fp16 has 11 bits, so each value of a query is wrong by 2^-11 of itself at most.
        assert products_with_query.rounding <= 2**-11
        assert np.abs(cosines(products, memory) - expected).max() < products_with_query.rounding + 1e-6


def test_queries_that_are_half_precision_already_lose_nothing():
    memory, query, _ = random_case(50, 3, 4096)
    half = (query * 64).half().double()
    products = PackedProducts(half)
    assert products.rounding == 0
    # What is left is the error of sums in fp32; sums in fp16 would be wrong by 1e-3.
    expected = cosines(memory.astype(np.float64) @ half.numpy().T, memory)
    assert np.abs(cosines(products(memory), memory) - expected).max() < 64 * 1e-6


def test_a_query_alone_is_not_rounded_to_half_precision():
    memory, query, expected = random_case(50, 1, 4096)
    products = products_with(query)
    assert products.rounding == 0
    assert np.abs(cosines(products(memory), memory) - expected).max() < 1e-7
    assert np.abs(cosines(PackedProducts(query)(memory), memory) - expected).max() > 1e-6


@pytest.mark.parametrize("n_rows", [1, 7, 8, 9, 16])
def test_rows_that_do_not_fill_the_kernels_eight_are_multiplied_too(n_rows: int):
    memory, query, expected = random_case(n_rows, 1, 33)
    assert np.abs(cosines(RowProducts(query)(memory), memory) - expected).max() < 1e-6


@pytest.mark.parametrize("bits", [0x0001, 0x03FF, 0x8001, 0x3C00, 0x7BFF, 0xFBFF])
def test_every_kind_of_half_is_widened_as_numpy_does(bits: int):
    """The smallest and the largest subnormal, a negative one, 1, the largest and the smallest number."""
    memory = np.full((9, 5), bits, np.uint16).view(np.float16)
    found = RowProducts(torch.eye(5, dtype=torch.float64)[:1])(memory)
    assert found[:, 0].tolist() == [float(memory[0, 0])] * 9


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(value: float):
    memory = np.ones((17, 40), np.float16)
    memory[[3, 16], 39] = value
    found = RowProducts(torch.ones((1, 40), dtype=torch.float64))(memory)[:, 0]
    assert np.flatnonzero(~np.isfinite(found)).tolist() == [3, 16]


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_scale_of_a_query_does_not_matter(scale: float):
    memory, query, expected = random_case(8, 2, 64)
    products = PackedProducts(query * scale)
    assert products.rounding == pytest.approx(PackedProducts(query).rounding * scale, rel=0.5)
    assert np.abs(cosines(products(memory) / scale, memory) - expected).max() < 2.5e-4


def test_large_memories_do_not_overflow():
    memory = np.full((2, 65536), 60000, np.float16)
    query = torch.nn.functional.normalize(torch.ones((1, 65536), dtype=torch.float64))
    assert products_with(query)(memory).tolist() == [[60000.0 * 256]] * 2
