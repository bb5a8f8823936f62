from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import clara_dist.retrieval.scan as scan_module
import clara_dist.retrieval.search as search_module
from clara_dist.errors import CorruptStoreError, RetrievalError
from clara_dist.retrieval import ExactSearcher, SearchResult, merge_top_k
from clara_dist.store import MemoryStore, StoreSchema, commit, write_shard
from tiny_stores import FINGERPRINT, build_store, open_store, random_memory, write_rows


def random_queries(b: int, size: int, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((b, size)).astype(np.float32)


def brute_force(query_BX: np.ndarray, memory_SMD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines in float64, rounded to float32 as the searcher promises; ties by row."""
    q, m = query_BX.astype(np.float64), memory_SMD.reshape(len(memory_SMD), -1).astype(np.float64)
    scores = (q @ m.T) / np.linalg.norm(q, axis=1)[:, None]
    norms = np.linalg.norm(m, axis=1)
    scores = np.divide(scores, norms, out=np.zeros_like(scores), where=norms > 0).astype(np.float32)
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(scores, rows, axis=1)


def assert_exact(found: SearchResult, query_BX: np.ndarray, memory_SMD: np.ndarray, k: int) -> None:
    rows, scores = brute_force(query_BX, memory_SMD, k)
    assert found.rows_BK.tolist() == rows.tolist()
    # The float64 sums differ by 1e-16, so the float32 results differ by one unit in the last place at most.
    assert np.allclose(found.scores_BK.numpy(), scores, rtol=0, atol=6e-8)


@pytest.mark.parametrize("shard_rows", [[700], [1, 0, 299, 400], [10] * 70])
@pytest.mark.parametrize("k", [1, 5, 700])
def test_equals_float64_brute_force_however_the_store_is_cut(tmp_path: Path, shard_rows: list[int], k: int):
    memory = random_memory(700)
    searcher = ExactSearcher(open_store(tmp_path, memory, shard_rows))
    query = random_queries(9, 16)
    found = searcher.search(query, k)
    assert_exact(found, query, memory, k)
    assert (found.rows_BK.dtype, found.scores_BK.dtype) == (torch.int64, torch.float32)
    assert found.rows_BK.shape == (9, k)


@pytest.mark.parametrize("n_queries", [1, 3, 40])
def test_chunks_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_queries: int):
    memory = random_memory(500)
    searcher = ExactSearcher(open_store(tmp_path, memory, [333, 167]), rows=np.arange(0, 500, 3))
    query = random_queries(n_queries, 16)
    whole = searcher.search(query, 20)
    for products in (scan_module.RowProducts, scan_module.PackedProducts):
        monkeypatch.setattr(products, "chunk_bytes", (200, 200))
    monkeypatch.setattr(scan_module, "_CACHED_BYTES", 70)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(search_module, "_RESCORE_CHUNK_BYTES", 1)
    pieces = searcher.search(query, 20)
    assert torch.equal(pieces.rows_BK, whole.rows_BK)
    assert torch.equal(pieces.scores_BK, whole.scores_BK)


def test_a_query_scores_the_same_alone_and_in_a_batch(tmp_path: Path):
    searcher = ExactSearcher(open_store(tmp_path, random_memory(400, 4, 64)))
    query = random_queries(17, 256)
    batch = searcher.search(query, 10)
    for i in range(17):
        alone = searcher.search(query[i : i + 1], 10)
        assert torch.equal(alone.rows_BK[0], batch.rows_BK[i])
        assert torch.equal(alone.scores_BK[0], batch.scores_BK[i])


def test_equal_memories_tie_and_the_lowest_row_comes_first(tmp_path: Path):
    # Long vectors: fp32 products of equal rows differ in the last bits by their place in a chunk.
    memory = np.repeat(random_memory(3, 2, 4096, seed=5), 40, axis=0)[np.random.default_rng(0).permutation(120)]
    searcher = ExactSearcher(open_store(tmp_path, memory, [50, 70]))
    query = random_queries(2, 8192)
    found = searcher.search(query, 60)
    assert_exact(found, query, memory, 60)
    for rows, scores in zip(found.rows_BK, found.scores_BK, strict=True):
        assert scores[:40].unique().numel() == 1
        assert rows[:40].tolist() == sorted(rows[:40].tolist())


def test_nearly_equal_scores_are_ranked_as_float64_ranks_them(tmp_path: Path):
    # A collapsed space: all memories point nearly the same way, and fp32 sums over X = 32,768 positive values cannot
    # tell them apart. The sieve must keep them all and the float64 scores must decide.
    generator = np.random.default_rng(3)
    memory = (1 + 0.002 * generator.standard_normal((300, 8, 4096))).astype(np.float16)
    query = (1 + 0.002 * generator.standard_normal((2, 8 * 4096))).astype(np.float32)
    assert_exact(ExactSearcher(open_store(tmp_path, memory, [100, 200])).search(query, 10), query, memory, 10)


@pytest.mark.parametrize("n_queries", [1, 17])
def test_the_sieve_margin_covers_the_error_of_fp32_scores(tmp_path: Path, n_queries: int):
    memory = np.abs(random_memory(40, 16, 4096))
    query = np.abs(random_queries(n_queries, 65536))
    searcher = ExactSearcher(open_store(tmp_path, memory))
    unit = torch.from_numpy(query).double()
    unit /= unit.norm(dim=1, keepdim=True)
    products = scan_module.products_with(unit)
    scores_BS = np.concatenate([scores for _, scores in searcher._scan(products, n_queries)], axis=1)
    exact = searcher._exact(unit.numpy(), np.arange(40), np.ones((n_queries, 40), bool))
    # The rounding of several queries comes on top: 1.6e-4, and half of that in the scores at worst.
    assert products.rounding == 0 if n_queries == 1 else 0 < products.rounding < 2.5e-4
    assert np.abs(scores_BS - exact).max() < search_module._SIEVE_MARGIN / 4 + products.rounding
    half = torch.from_numpy((query.astype(np.float16)).astype(np.float64))
    assert scan_module.products_with(half).rounding == 0


def test_a_program_that_multiplies_in_bfloat16_still_gets_exact_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Scores a few 1e-4 apart, errors of a few 1e-3: only a wider margin can find the best.
    memory = (1 + 0.05 * random_memory(600, 2, 64)).astype(np.float16)
    searcher = ExactSearcher(open_store(tmp_path, memory, [300, 300]))
    query = 1 + 0.05 * random_queries(20, 128)
    mm = torch.mm

    def coarse_mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return mm(a.bfloat16().float(), b.bfloat16().float())

    # What TF32 on a GPU and `set_float32_matmul_precision("medium")` on some CPUs do.
    monkeypatch.setattr(torch, "mm", coarse_mm)
    monkeypatch.setattr(search_module, "products_with", scan_module.WideProducts)  # as on a GPU
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = searcher.search(query, 10)
    assert_exact(found, query, memory, 10)


def test_a_subset_of_rows_is_searched_alone(tmp_path: Path):
    memory = random_memory(200)
    store = open_store(tmp_path, memory, [60, 60, 80])
    query = random_queries(4, 16)
    rows = np.sort(np.random.default_rng(2).choice(200, 70, replace=False))
    searcher = ExactSearcher(store, rows=np.random.default_rng(3).permutation(np.concatenate([rows, rows[:5]])))
    assert searcher.n_rows == 70
    expected, scores = brute_force(query, memory[rows], 15)
    found = searcher.search(query, 15)
    assert found.rows_BK.tolist() == rows[expected].tolist()
    assert np.allclose(found.scores_BK.numpy(), scores, rtol=0, atol=6e-8)
    for bad in ([200], [-1]):
        with pytest.raises(RetrievalError, match=r"expected: 0 \.\. 199"):
            ExactSearcher(store, rows=np.array(bad))


def test_merging_partitions_equals_one_search(tmp_path: Path):
    memory = np.repeat(random_memory(50), 3, axis=0)
    store = open_store(tmp_path, memory, [70, 80])
    query = random_queries(5, 16)
    parts = [np.arange(100, 150), np.arange(0, 100, 2), np.arange(1, 100, 2)]
    results = [ExactSearcher(store, rows=part).search(query, 20) for part in parts]
    merged, whole = merge_top_k(results, 20), ExactSearcher(store).search(query, 20)
    assert torch.equal(merged.rows_BK, whole.rows_BK)
    assert torch.equal(merged.scores_BK, whole.scores_BK)
    with pytest.raises(RetrievalError, match=r"1 \.\. 60"):
        merge_top_k(results, 61)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_queries_of_any_float_type_and_shape(tmp_path: Path, dtype: torch.dtype):
    memory = random_memory(30)
    searcher = ExactSearcher(open_store(tmp_path, memory))
    query = torch.from_numpy(random_queries(2, 16)).to(dtype).view(2, 2, 8).requires_grad_()
    found = searcher.search(query, 4)
    assert not found.scores_BK.requires_grad
    assert_exact(found, query.detach().double().flatten(1).numpy(), memory, 4)
    scaled = searcher.search(query.detach() * 1024, 4)
    assert torch.equal(scaled.scores_BK, found.scores_BK)


def test_a_zero_memory_scores_zero(tmp_path: Path):
    memory = random_memory(5)
    memory[3] = 0
    query = random_queries(1, 16)
    found = ExactSearcher(open_store(tmp_path, memory)).search(query, 5)
    assert_exact(found, query, memory, 5)
    assert found.scores_BK[0][found.rows_BK[0] == 3].tolist() == [0.0]


@pytest.mark.parametrize("k", [0, -1, 31])
def test_k_out_of_range_is_a_clear_error(tmp_path: Path, k: int):
    searcher = ExactSearcher(open_store(tmp_path, random_memory(30)))
    with pytest.raises(RetrievalError, match=rf"got: k = {k}\n.*1 \.\. 30"):
        searcher.search(random_queries(1, 16), k)


def test_an_empty_store_opens_but_cannot_be_searched(tmp_path: Path):
    commit(tmp_path, StoreSchema(2, 8), FINGERPRINT, [])
    searcher = ExactSearcher(MemoryStore.open(tmp_path))
    with pytest.raises(RetrievalError, match="nothing to search"):
        searcher.search(random_queries(1, 16), 1)


@pytest.mark.parametrize("shape", [(1, 15), (16,), (0, 16), (1, 2, 9)])
def test_queries_of_the_wrong_shape_are_errors(tmp_path: Path, shape: tuple[int, ...]):
    searcher = ExactSearcher(open_store(tmp_path, random_memory(3)))
    with pytest.raises(RetrievalError, match=r"expected: \[B, 16\] or \[B, 2, 8\]"):
        searcher.search(torch.ones(shape), 1)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_queries_without_a_direction_are_errors(tmp_path: Path, value: float):
    searcher = ExactSearcher(open_store(tmp_path, random_memory(3)))
    query = random_queries(3, 16)
    query[1] = value
    with pytest.raises(RetrievalError, match="query 1 has no direction"):
        searcher.search(query, 1)


def test_a_memory_that_is_not_finite_is_never_an_answer(tmp_path: Path):
    write_rows(tmp_path, "right", random_memory(4))
    table = pa.ipc.open_file(pa.memory_map(str(tmp_path / "shards/right.arrow"))).read_all()
    norms = pa.array(np.array([1, np.nan, 1, 1], np.float32))
    shard = write_shard(
        tmp_path, table.set_column(table.schema.get_field_index("norm"), table.schema.field("norm"), norms), "unit"
    )
    commit(tmp_path, StoreSchema(2, 8), FINGERPRINT, [shard])
    with pytest.raises(CorruptStoreError, match=r"shards/unit\.arrow"):
        ExactSearcher(MemoryStore.open(tmp_path)).search(random_queries(1, 16), 1)


@pytest.mark.parametrize("products", [scan_module.PackedProducts, scan_module.WideProducts, scan_module.RowProducts])
def test_the_scan_reads_the_mapped_file_without_a_copy_or_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, products: type[scan_module.PackedProducts]
):
    store = open_store(tmp_path, random_memory(100, 4, 64))
    given = []

    def watched(query_BX: torch.Tensor) -> scan_module.Products:
        made = products(query_BX)
        monkeypatch.setattr(
            products, "__call__", lambda self, m, call=products.__call__: given.append(m) or call(self, m)
        )
        return made

    monkeypatch.setattr(search_module, "products_with", watched)
    before = pa.total_allocated_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ExactSearcher(store).search(random_queries(1, 256), 3)
    assert [view.ctypes.data for view in given] == [store.shards[0].memory_SMD.ctypes.data]
    assert pa.total_allocated_bytes() == before


def test_a_searcher_pickles(tmp_path: Path):
    memory = random_memory(50)
    build_store(tmp_path, memory)
    searcher = ExactSearcher(MemoryStore.open(tmp_path), rows=np.arange(10, 40))
    copy = pickle.loads(pickle.dumps(searcher))
    query = random_queries(2, 16)
    assert torch.equal(copy.search(query, 5).rows_BK, searcher.search(query, 5).rows_BK)
