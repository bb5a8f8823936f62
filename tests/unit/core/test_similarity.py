from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clara_dist.core import cosine_scores
from clara_dist.errors import SelectionError


def test_cosines_by_hand_and_a_zero_memory_scores_zero():
    query_BX = torch.tensor([[3.0, 4.0]])
    memory_BNX = torch.tensor([[[3.0, 4.0], [-6.0, -8.0], [4.0, -3.0], [1.0, 0.0], [0.0, 0.0]]])
    torch.testing.assert_close(cosine_scores(query_BX, memory_BNX), torch.tensor([[1.0, -1.0, 0.0, 0.6, 0.0]]))


def test_trailing_dimensions_are_flattened():
    generator = torch.Generator().manual_seed(0)
    query_BMD = torch.randn(2, 4, 8, generator=generator, dtype=torch.float64)
    memory_BNMD = torch.randn(2, 5, 4, 8, generator=generator, dtype=torch.float64)
    scores_BN = cosine_scores(query_BMD, memory_BNMD)
    expected_BN = F.cosine_similarity(query_BMD.flatten(1)[:, None], memory_BNMD.flatten(2), dim=-1)
    assert scores_BN.dtype == torch.float64
    torch.testing.assert_close(scores_BN, expected_BN, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_scored_in_fp32_also_under_autocast(dtype):
    generator = torch.Generator().manual_seed(1)
    # 16 tokens of size 4096 with entries near 200: squared norms of 3e9 overflow fp16, and all terms have one sign,
    # so that plain summation would drift (a matrix-vector product is 1e-5 off here).
    query_BX = (torch.randn(2, 65536, generator=generator) * 200).to(dtype)
    memory_BNX = (query_BX.float()[:, None] + torch.randn(2, 3, 65536, generator=generator)).to(dtype)
    expected_BN = F.cosine_similarity(query_BX.double()[:, None], memory_BNX.double(), dim=-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores_BN = cosine_scores(query_BX, memory_BNX)
    assert scores_BN.dtype == torch.float32
    torch.testing.assert_close(scores_BN.double(), expected_BN, rtol=0, atol=1e-6)  # observed 1e-7


def test_gradients_to_both_inputs():
    generator = torch.Generator().manual_seed(2)
    query_BX = torch.randn(2, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    memory_BNX = torch.randn(2, 3, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(cosine_scores, (query_BX, memory_BNX))


def test_zero_padding_does_not_spoil_the_query_gradient():
    query_BX = torch.tensor([[1.0, 2.0]], requires_grad=True)
    memory_BNX = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    cosine_scores(query_BX, memory_BNX).sum().backward()
    # d cos / dq = (m_hat - cos q_hat) / |q|
    torch.testing.assert_close(query_BX.grad, torch.tensor([[4.0, -2.0]]) / 5**1.5)


@pytest.mark.parametrize(("query", "memory"), [((2, 6), (3, 4, 6)), ((2, 6), (2, 4, 5))])
def test_shapes_that_do_not_fit(query, memory):
    with pytest.raises(SelectionError, match="do not fit"):
        cosine_scores(torch.zeros(query), torch.zeros(memory))
