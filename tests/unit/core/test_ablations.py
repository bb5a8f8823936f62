"""The ways that straight-through selection is compared with: what they read, and what they teach."""

from __future__ import annotations

import pytest
import torch

from clara_dist.core import (
    contrastive_nll,
    select_without_gradient,
    selection_matrix,
    soft_mixture,
    straight_through_select,
)

TAU = 0.3


def inputs(k_masked: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(3)
    scores = torch.randn(4, 6, generator=random, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(4, 6, 2, 3, generator=random, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(4, 6, dtype=torch.bool)
    if k_masked:
        mask[1, -k_masked:] = False
    return scores, memory, mask


def test_hard_reads_what_straight_through_reads_and_teaches_the_scores_nothing() -> None:
    scores, memory, mask = inputs(2)
    hard = select_without_gradient(scores, memory, 3, mask_BN=mask)
    ste = straight_through_select(scores, memory, 3, temperature=TAU, mask_BN=mask)
    assert torch.equal(hard.memory_BKX, ste.memory_BKX)
    assert torch.equal(hard.indices_BK, ste.indices_BK)
    hard.memory_BKX.square().sum().backward()
    assert torch.equal(scores.grad, torch.zeros_like(scores))
    read = torch.zeros(4, 6, dtype=torch.bool).scatter(1, hard.indices_BK, True)
    assert torch.equal(memory.grad, torch.where(read[..., None, None], 2 * memory.detach(), 0.0))


def test_soft_reads_the_mixture_whose_gradient_straight_through_borrows() -> None:
    """One slot: mean memory under the softmax, by hand; its gradient is that of the estimator, whatever is upstream."""
    scores, memory, mask = inputs(2)
    share = torch.softmax(torch.where(mask, scores / TAU, -torch.inf), -1)
    by_hand = torch.einsum("bn,bnmd->bmd", share, memory)
    upstream = torch.randn(4, 1, 2, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    soft = soft_mixture(scores, memory, 1, temperature=TAU, mask_BN=mask)
    torch.testing.assert_close(soft.memory_BKX[:, 0], by_hand, rtol=0, atol=1e-14)
    (of_soft,) = torch.autograd.grad((soft.memory_BKX * upstream).sum(), scores)
    ste = straight_through_select(scores, memory, 1, temperature=TAU, mask_BN=mask)
    (of_ste,) = torch.autograd.grad((ste.memory_BKX * upstream).sum(), scores)
    torch.testing.assert_close(of_soft, of_ste, rtol=0, atol=1e-13)
    assert (of_soft[1, -2:] == 0).all()


def test_soft_slots_leave_out_what_earlier_ones_took() -> None:
    scores, memory, mask = inputs()
    soft = soft_mixture(scores, memory, 3, temperature=TAU, mask_BN=mask)
    taken: list[int] = []
    logits = scores.detach()[0] / TAU
    for j in range(3):
        left = torch.tensor([-torch.inf if n in taken else float(logits[n]) for n in range(6)], dtype=torch.float64)
        expected = torch.einsum("n,nmd->md", torch.softmax(left, -1), memory.detach()[0])
        torch.testing.assert_close(soft.memory_BKX[0, j].detach(), expected, rtol=0, atol=1e-14)
        taken.append(int(soft.indices_BK[0, j]))
    hard = selection_matrix(scores, 3, temperature=TAU).detach()
    assert torch.equal(hard.argmax(-1), soft.indices_BK)


def test_garbage_behind_the_mask_is_not_read() -> None:
    scores, memory, mask = inputs(2)
    with torch.no_grad():
        memory[1, -2:] = torch.inf
    assert soft_mixture(scores, memory, 2, temperature=TAU, mask_BN=mask).memory_BKX.isfinite().all()


def test_contrastive_loss_by_hand() -> None:
    scores = torch.tensor([[0.3, 0.1, -0.2, 0.9], [0.5, 0.4, 0.0, 0.0], [0.1, 0.2, 0.3, 9.0]], requires_grad=True)
    gold = torch.tensor([[True, False, True, False], [False] * 4, [False, True, False, False]])
    mask = torch.tensor([[True] * 4, [True] * 4, [True, True, True, False]])
    nll = contrastive_nll(scores, gold, temperature=0.5, mask_BN=mask)
    e = [[torch.tensor(s / 0.5).exp().item() for s in row] for row in scores.tolist()]
    first = -torch.tensor((e[0][0] + e[0][2]) / sum(e[0])).log()
    third = -torch.tensor(e[2][1] / sum(e[2][:3])).log()
    assert nll.tolist() == pytest.approx([float(first), 0.0, float(third)], rel=1e-6)
    nll.sum().backward()
    assert scores.grad.isfinite().all()
    assert (scores.grad[1] == 0).all()
    assert scores.grad[2, 3] == 0
    # Softmax over all, less softmax over the gold ones, by tau.
    share = [x / sum(e[2][:3]) for x in e[2][:3]]
    assert scores.grad[2, :3].tolist() == pytest.approx(
        [share[0] / 0.5, (share[1] - 1) / 0.5, share[2] / 0.5], rel=1e-5
    )
