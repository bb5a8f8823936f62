"""Products of half-precision memories with queries, at the speed at which memory can be read.

One query, 1 GiB of memories, one thread of an AMD EPYC (Zen 4) that reads 23-26 GB/s: widening the memories to fp32 for
a BLAS takes in 9 GB/s, ``torch.mv`` in fp16 (which also rounds the scores to fp16) 9-11, FAISS' fp16 scalar quantizer
11, numkong's ``cdist`` 11-14, and numkong's packed products 14-17. These work on several rows at a time, so that the
processor waits for several pages at once, and accumulate in fp32.
"""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Protocol

import numkong
import numpy as np
import torch
from torch import Tensor

# More queries are faster as fp32 matrix products: 16 queries read 2.8 GB/s both ways, 32 read 1.4 and 2.0.
_MAX_PACKED_QUERIES = 16
# Long enough that handing a chunk to a thread costs nothing (0.5 ms), short enough that the threads end together.
_PACKED_CHUNK_BYTES = 8 << 20
# Memories are widened to fp32 in chunks of about the size of a core's second-level cache, so that the wide copy never
# reaches main memory: 2 MiB read 9-10 GB/s of fp16 on one core, 32 MiB 3-4, 0.25 MiB 3-5.
_WIDE_CHUNK_BYTES = 2 << 20
# A GPU wants few large copies instead.
_GPU_CHUNK_BYTES = 256 << 20
# Queries are scaled to 2^14 .. 2^15: nowhere near overflow in fp16, and their small values far from underflow.
_LARGEST_EXPONENT = 15


class Products(Protocol):
    """Inner products of memories with the queries that it was made for."""

    def __call__(self, memory_SX: Tensor, rows_C: np.ndarray) -> Tensor:
        """Inner products of some rows.

        Args:
            memory_SX: float16 on the CPU.
            rows_C: Which of its rows, ascending.

        Returns:
            products_CB, float32 on the CPU, accumulated in float32.
        """


def products_with(query_BX: Tensor, pool: Executor) -> Products:
    """The fastest products for these queries, float64, on their device.

    Args:
        query_BX: The queries.
        pool: As many threads as torch may use.
    """
    if query_BX.device.type == "cpu" and len(query_BX) <= _MAX_PACKED_QUERIES:
        return PackedProducts(query_BX, pool)
    return WideProducts(query_BX)


class PackedProducts:
    """For few queries on the CPU: fp16 as it lies in the mapped file, each thread of the pool on chunks of its own.

    Each query is the sum of two fp16 vectors, so its own rounding (2^-22) is below that of fp32 products. For one query
    the second vector is free: the memories come too slowly to notice.
    """

    def __init__(self, query_BX: Tensor, pool: Executor) -> None:
        self._pool = pool
        query = query_BX.numpy()
        # A power of two: exact to multiply with, and to divide by.
        _, exponent_B1 = np.frexp(np.abs(query).max(axis=1, keepdims=True))
        scale_B1 = np.ldexp(1.0, _LARGEST_EXPONENT - exponent_B1)
        high_BX = (query * scale_B1).astype(np.float16)
        low_BX = (query * scale_B1 - high_BX).astype(np.float16)
        self._scale_B = scale_B1[:, 0].astype(np.float32)
        self._packed = numkong.dots_pack(np.concatenate([high_BX, low_BX]), dtype="float16")

    def __call__(self, memory_SX: Tensor, rows_C: np.ndarray) -> Tensor:
        chunk = max(1, _PACKED_CHUNK_BYTES // (memory_SX.shape[1] * memory_SX.element_size()))
        memory = memory_SX.numpy()
        products_CB = np.empty((len(rows_C), len(self._scale_B)), np.float32)

        def multiply(low: int) -> None:
            products_CB[low : low + chunk] = self._multiply(memory, rows_C[low : low + chunk])

        starts = range(0, len(rows_C), chunk)
        # numkong lets go of the interpreter's lock. What is one chunk need not wait for a thread.
        list(self._pool.map(multiply, starts) if len(starts) > 1 else map(multiply, starts))
        return torch.from_numpy(products_CB / self._scale_B)

    def _multiply(self, memory_SX: np.ndarray, rows_C: np.ndarray) -> np.ndarray:
        """Products with the scaled queries."""
        first, span = rows_C[0], rows_C[-1] - rows_C[0] + 1
        # Reading a few rows in vain is cheaper than a copy of the others.
        dense = span <= 2 * len(rows_C)
        memory_CX = memory_SX[first : first + span] if dense else memory_SX[rows_C]
        products = np.asarray(numkong.dots_packed(memory_CX, self._packed))
        if dense and span > len(rows_C):
            products = products[rows_C - first]
        high_CB, low_CB = np.split(products, 2, axis=1)
        return high_CB + low_CB


class WideProducts:
    """For many queries, and on a GPU: memories are widened to fp32 in small pieces, and multiplied as matrices."""

    def __init__(self, query_BX: Tensor) -> None:
        self._query_XB = query_BX.float().T

    def __call__(self, memory_SX: Tensor, rows_C: np.ndarray) -> Tensor:
        size, n_queries = self._query_XB.shape
        device = self._query_XB.device
        chunk_bytes = _WIDE_CHUNK_BYTES * torch.get_num_threads() if device.type == "cpu" else _GPU_CHUNK_BYTES
        # With many queries a chunk must have many rows too, or the queries are read more often than the memories.
        chunk = max(chunk_bytes // (4 * size), 4 * n_queries, 1)
        wide_CX = torch.empty((min(chunk, len(rows_C)), size), device=device)
        products_CB = torch.empty((len(rows_C), n_queries), device=device)
        for low in range(0, len(rows_C), chunk):
            memory_CX = _select(memory_SX, rows_C[low : low + chunk]).to(device)
            wide = wide_CX[: len(memory_CX)].copy_(memory_CX)
            torch.mm(wide, self._query_XB, out=products_CB[low : low + chunk])
        return products_CB.cpu()


def _select(memory_SX: Tensor, rows_C: np.ndarray) -> Tensor:
    """Ascending rows: a view where they are consecutive, a copy otherwise."""
    if rows_C[-1] - rows_C[0] == len(rows_C) - 1:
        return memory_SX[rows_C[0] : rows_C[-1] + 1]
    return memory_SX[torch.from_numpy(rows_C)]
