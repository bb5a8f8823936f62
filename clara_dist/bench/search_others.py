"""Exact search by others' means, as their users would set it up."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from clara_dist.errors import ConfigError

Search = Callable[[np.ndarray], np.ndarray]


def numpy_blas(unit_SX: np.ndarray, k: int) -> Search:
    """A product with fp32 vectors of length 1, by as many threads as NumPy's BLAS takes (OMP_NUM_THREADS)."""

    def search(query_BX: np.ndarray) -> np.ndarray:
        scores_BS = query_BX @ unit_SX.T
        best_BK = np.argpartition(scores_BS, -k, axis=1)[:, -k:]
        order_BK = np.argsort(-np.take_along_axis(scores_BS, best_BK, axis=1), axis=1, kind="stable")
        return np.take_along_axis(best_BK, order_BK, axis=1)

    return search


def faiss_flat(unit_SX: np.ndarray, k: int, threads: int) -> Search:
    """``IndexFlatIP`` over fp32 vectors of length 1."""
    return _faiss("Flat", unit_SX, k, threads)


def faiss_half(unit_SX: np.ndarray, k: int, threads: int) -> Search:
    """``SQfp16``: the same in half precision."""
    return _faiss("SQfp16", unit_SX, k, threads)


def _faiss(factory: str, unit_SX: np.ndarray, k: int, threads: int) -> Search:
    faiss = _import("faiss")
    faiss.omp_set_num_threads(threads)
    index = faiss.index_factory(unit_SX.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    index.train(unit_SX[:1024])
    index.add(unit_SX)
    return lambda query_BX: index.search(query_BX, k)[1]


def usearch_exact(half_SX: np.ndarray, k: int, threads: int) -> Search:
    """``usearch.index.search`` with ``exact=True`` and cosines, over fp16."""
    usearch = _import("usearch.index")

    def search(query_BX: np.ndarray) -> np.ndarray:
        matches = usearch.search(
            half_SX, query_BX.astype(np.float16), k, usearch.MetricKind.Cos, exact=True, threads=threads
        )
        return np.asarray(matches.keys).reshape(len(query_BX), k)

    return search


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"`clara-dist bench search` needs {name.partition('.')[0]}", hint="pip install 'clara-dist[bench]'"
        ) from error
