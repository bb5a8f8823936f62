"""Products of half-precision rows with one vector, compiled for the processor that it runs on.

NumPy, torch and the BLAS libraries have no product that reads fp16 and adds up in fp32 at the speed of the memory.
Numba compiles this one through LLVM (AVX-512, AVX2 with F16C, or NEON, whichever there is) in about a second.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

# float16(half_CX bits) as uint16, float32 vector_X, float32 products_C to write.
HalfDots = Callable[[np.ndarray, np.ndarray, np.ndarray], None]


@functools.cache
def half_dots() -> HalfDots:
    """Compile ``f(bits_CX, vector_X, products_C)``, which lets go of the interpreter's lock while it runs.

    Args of f:
        bits_CX: The rows, float16 seen as uint16, contiguous, perhaps read-only.
        vector_X: float32.
        products_C: float32, written: inner products, accumulated in fp32.
    """
    # Sums may be reordered, or nothing could be vectorised; NaN and infinity must stay what they are, as they tell of a
    # damaged store.
    compiled = njit(
        types.void(types.Array(types.uint16, 2, "C", readonly=True), types.float32[::1], types.float32[::1]),
        nogil=True,
        fastmath={"reassoc", "contract"},
    )
    return compiled(_half_dots)


@intrinsic
def _widened(typing_context: Any, bits: Any) -> Any:
    """The float32 that a float16 is, given its bits. LLVM makes it a vector instruction; Numba has no float16."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


def _half_dots(bits_CX: np.ndarray, vector_X: np.ndarray, products_C: np.ndarray) -> None:
    n_rows, size = bits_CX.shape
    whole = n_rows - n_rows % 8
    # Eight rows, so eight pages, at a time: a processor that follows one row only waits at the end of each page. They
    # are written out because LLVM keeps eight scalars in registers, and an array of eight in memory.
    for row in range(0, whole, 8):
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = np.float32(0)
        for x in range(size):
            value = vector_X[x]
            s0 += _widened(bits_CX[row, x]) * value
            s1 += _widened(bits_CX[row + 1, x]) * value
            s2 += _widened(bits_CX[row + 2, x]) * value
            s3 += _widened(bits_CX[row + 3, x]) * value
            s4 += _widened(bits_CX[row + 4, x]) * value
            s5 += _widened(bits_CX[row + 5, x]) * value
            s6 += _widened(bits_CX[row + 6, x]) * value
            s7 += _widened(bits_CX[row + 7, x]) * value
        products_C[row] = s0
        products_C[row + 1] = s1
        products_C[row + 2] = s2
        products_C[row + 3] = s3
        products_C[row + 4] = s4
        products_C[row + 5] = s5
        products_C[row + 6] = s6
        products_C[row + 7] = s7
    for row in range(whole, n_rows):
        total = np.float32(0)
        for x in range(size):
            total += _widened(bits_CX[row, x]) * vector_X[x]
        products_C[row] = total
