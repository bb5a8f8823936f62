"""How near a question is to a document in the latent space."""

from __future__ import annotations

import torch
from torch import Tensor

from clara_dist.errors import SelectionError

# The shortest memory that is not zero is 6e-8 long (fp16); a zero one has cosine 0 instead of NaN.
_MIN_NORM = 1e-12


def cosine_scores(query_BX: Tensor, memory_BNX: Tensor) -> Tensor:
    """Cosine of each query with its own N candidates: s_i = <q, m_i> / (|q| |m_i|).

    The maths is fp32 whatever the inputs are (float64 stays float64), also under autocast: at temperature 0.02 a score
    error of bf16 size, 4e-3, would change the softmax's odds by a fifth.

    Args:
        query_BX: Queries; trailing dimensions are flattened, so [B, M, D] will do.
        memory_BNX: Candidates' memories; likewise [B, N, M, D].

    Returns:
        scores_BN, with gradient to both inputs. An all-zero memory (padding) scores 0.

    Raises:
        SelectionError: B or the flattened X differ.
    """
    query_BX, memory_BNX = query_BX.flatten(1), memory_BNX.flatten(2)
    if query_BX.shape[0] != memory_BNX.shape[0] or query_BX.shape[1] != memory_BNX.shape[2]:
        raise SelectionError(
            "queries and memories do not fit",
            got=f"{tuple(query_BX.shape)} and {tuple(memory_BNX.shape)} (flattened)",
            expected="[B, X] and [B, N, X]",
            hint="the query reasoner and the store must have the same number of memory tokens and hidden size",
        )
    dtype = torch.promote_types(torch.promote_types(query_BX.dtype, memory_BNX.dtype), torch.float32)
    query_BX, memory_BNX = query_BX.to(dtype), memory_BNX.to(dtype)
    # Products and sums, no matmul and no vector_norm: torch sums pairwise, so at X = 65,536 the relative error is 1e-7
    # (matrix-vector product: 1e-5, vector_norm: 2e-6), and neither TF32 nor autocast can touch it.
    dot_BN = (memory_BNX * query_BX[:, None]).sum(-1)
    return dot_BN / (_norm(query_BX)[:, None] * _norm(memory_BNX))


def _norm(x: Tensor) -> Tensor:
    # The clamp comes before the root, whose slope at 0 is infinite.
    return x.square().sum(-1).clamp_min(_MIN_NORM**2).sqrt()
