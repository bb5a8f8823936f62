"""Products of half-precision memories with queries, at the speed at which memory can be read.

One query, 1 GiB of memories, one thread of an AMD EPYC (Zen 4) that reads 20-25 GB/s: widening the memories to fp32 for
a BLAS takes in 9 GB/s, ``torch.mv`` in fp16 (which also rounds the scores to fp16) 9-11, FAISS' fp16 scalar quantizer
11, numkong's ``cdist`` 11-14, numkong's packed products 15, `clara_dist.retrieval.kernel` 19-20. With two queries and
more the packed products are faster: they read a memory once for all of them.
"""

from __future__ import annotations

from typing import Protocol

import numkong
import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from clara_dist.retrieval.kernel import half_dots

# Handing over a chunk and its scores costs 0.1 ms; a chunk of 4 MiB takes 0.2 ms, one of 64 MiB 4 ms.
_CPU_CHUNK_BYTES = (4 << 20, 64 << 20)
# Fits into a core's second-level cache: what more queries than fit into one pack go through again and again.
_CACHED_BYTES = 1 << 20
# Packs of more queries fall out of the first-level cache: 32 queries read 3.0 GB/s, 128 at once 0.3 (widened to fp32,
# with a BLAS: 2.2 and 0.6).
_PACK = 32
# Queries are scaled to 2^14 .. 2^15: nowhere near overflow in fp16, and their small values far from underflow.
_LARGEST_EXPONENT = 15
# A GPU wants few large copies.
_GPU_CHUNK_BYTES = (256 << 20, 256 << 20)


class Products(Protocol):
    """Inner products of memories with the queries that it was made for.

    Attributes:
        chunk_bytes: How many bytes of memories one call should get, at least and at most.
        rounding: Euclidean length of what the queries, of length 1, lost when they were rounded, at most: what a cosine
            may be wrong by, apart from the products' own errors.
    """

    chunk_bytes: tuple[int, int]
    rounding: float

    def __call__(self, memory_CX: np.ndarray) -> np.ndarray:
        """Inner products.

        Args:
            memory_CX: float16, perhaps read-only.

        Returns:
            products_CB, float32, accumulated in float32.
        """


def products_with(query_BX: Tensor) -> Products:
    """Products with these queries, float64, where they are. Safe to use from several threads."""
    if query_BX.device.type != "cpu":
        return WideProducts(query_BX)
    return RowProducts(query_BX) if len(query_BX) == 1 else PackedProducts(query_BX)


class RowProducts:
    """One query on the CPU: fp16 as it lies in the mapped file, eight rows at a time. Runs in the calling thread."""

    chunk_bytes = _CPU_CHUNK_BYTES
    rounding = 0.0  # 2^-24: the same as of any fp32 product

    def __init__(self, query_1X: Tensor) -> None:
        (self._query_X,) = query_1X.numpy().astype(np.float32)
        self._dots = half_dots()

    def __call__(self, memory_CX: np.ndarray) -> np.ndarray:
        products_C = np.empty(len(memory_CX), np.float32)
        self._dots(memory_CX.view(np.uint16), self._query_X, products_C)
        return products_C[:, None]


class PackedProducts:
    """Queries on the CPU: fp16 as it lies in the mapped file, queries rounded to fp16. Runs in the calling thread."""

    chunk_bytes = _CPU_CHUNK_BYTES

    def __init__(self, query_BX: Tensor) -> None:
        query = query_BX.numpy()
        # A power of two: exact to multiply with, and to divide by.
        _, exponent_B1 = np.frexp(np.abs(query).max(axis=1, keepdims=True))
        scale_B1 = np.ldexp(1.0, _LARGEST_EXPONENT - exponent_B1)
        half_BX = (query * scale_B1).astype(np.float16)
        self.rounding = float(np.linalg.norm(half_BX / scale_B1 - query, axis=1).max())
        self._scale_B = scale_B1[:, 0].astype(np.float32)
        self._packs = [
            numkong.dots_pack(half_BX[low : low + _PACK], dtype="float16") for low in range(0, len(half_BX), _PACK)
        ]

    def __call__(self, memory_CX: np.ndarray) -> np.ndarray:
        products_CB = np.empty((len(memory_CX), len(self._scale_B)), np.float32)
        piece = len(memory_CX) if len(self._packs) == 1 else max(1, _CACHED_BYTES // memory_CX[0].nbytes)
        for low in range(0, len(memory_CX), piece):
            for i, pack in enumerate(self._packs):  # numkong lets go of the interpreter's lock
                found = numkong.dots_packed(memory_CX[low : low + piece], pack)
                products_CB[low : low + piece, i * _PACK : (i + 1) * _PACK] = found
        return products_CB / self._scale_B


class WideProducts:
    """On a GPU: memories are copied to it in half precision, widened to fp32 there, and multiplied as matrices."""

    chunk_bytes = _GPU_CHUNK_BYTES
    rounding = 0.0  # 2^-24: the same as of any fp32 product

    def __init__(self, query_BX: Tensor) -> None:
        self._query_XB = query_BX.float().T

    def __call__(self, memory_CX: np.ndarray) -> np.ndarray:
        # DLPack, because torch.from_numpy warns about arrays that are read-only.
        memory = from_dlpack(memory_CX).to(self._query_XB.device)
        return torch.mm(memory.float(), self._query_XB).cpu().numpy()
