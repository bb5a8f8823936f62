from __future__ import annotations

import math
from typing import Literal

import pytest
import torch

from clara_dist.core import selection_matrix, straight_through_select, top_k
from clara_dist.errors import SelectionError

ESTIMATORS: tuple[Literal["sequential", "leave_own_out"], ...] = ("sequential", "leave_own_out")


def _world(seed: int = 0, b: int = 3, n: int = 7, dtype: torch.dtype = torch.float64):
    """Cosine-like scores, memories of two trailing dimensions, and a ragged mask with rows of n, n - 1 and n - 2."""
    generator = torch.Generator().manual_seed(seed)
    scores_BN = torch.rand(b, n, generator=generator, dtype=dtype) * 0.2
    memory_BNMD = torch.randn(b, n, 2, 3, generator=generator, dtype=dtype)
    mask_BN = torch.arange(n) < n - torch.arange(b)[:, None]
    return scores_BN, memory_BNMD, mask_BN


def _slot_by_slot_gradient(scores_N, gain_KN, order, tau, estimator):
    """The estimators' gradients written from their definitions with Python floats, no tensors and no autograd."""
    n, gradient = len(scores_N), [0.0] * len(scores_N)
    exp = [math.exp((s - max(scores_N)) / tau) for s in scores_N]
    p = [e / sum(exp) for e in exp]
    for j, own in enumerate(order):
        excluded = {own} if estimator == "leave_own_out" and len(order) > 1 else set(order[:j])
        rivals = [i for i in range(n) if i not in excluded]
        mass = sum(p[i] for i in rivals)
        scale = mass if estimator == "leave_own_out" and len(order) > 1 else 1.0
        mean = sum(p[i] / mass * gain_KN[j][i] for i in rivals)
        for i in rivals:
            gradient[i] += scale * p[i] / mass * (gain_KN[j][i] - mean) / tau
    return gradient


def test_top_k_is_descending_and_ties_go_to_the_lower_index():
    scores_BN = torch.tensor([[0.1, 0.5, 0.5, 0.9, 0.5, -1.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    assert top_k(scores_BN, 4).tolist() == [[3, 1, 2, 4], [0, 1, 2, 3]]
    assert top_k(scores_BN.to(torch.bfloat16), 4).tolist() == [[3, 1, 2, 4], [0, 1, 2, 3]]


def test_padded_candidates_are_never_chosen_whatever_they_hold():
    scores_BN = torch.tensor([[0.1, 0.3, 9.0, math.nan], [0.1, 0.3, 0.2, -5.0]])
    mask_BN = torch.tensor([[True, True, False, False], [True, True, True, True]])
    assert top_k(scores_BN, 2, mask_BN).tolist() == [[1, 0], [1, 2]]
    assert top_k(scores_BN[1:], 4, mask_BN[1:]).tolist() == [[1, 2, 0, 3]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_forward_is_the_memory_bit_for_bit(dtype):
    scores_BN, memory_BNMD, mask_BN = _world()
    memory_BNMD = (memory_BNMD * 1000 / 3).to(dtype)
    chosen = straight_through_select(scores_BN.float(), memory_BNMD, 3, temperature=0.02, mask_BN=mask_BN)
    assert chosen.memory_BKX.dtype == dtype
    assert chosen.memory_BKX.shape == (3, 3, 2, 3)
    for row, indices in enumerate(chosen.indices_BK.tolist()):
        for slot, index in enumerate(indices):
            assert torch.equal(chosen.memory_BKX[row, slot], memory_BNMD[row, index])
    expected = sorted(range(5), key=lambda i: -scores_BN[2, i].item())[:3]
    assert chosen.indices_BK[2].tolist() == expected


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("tau", [0.02, 0.1, 1.0])
@pytest.mark.parametrize("masked", [False, True])
def test_backward_equals_autograd_through_the_oracle(estimator, k, tau, masked):
    scores_BN, memory_BNMD, mask_BN = _world(seed=k)
    mask_BN = mask_BN if masked else None
    upstream_BKMD = torch.randn(3, k, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    ours = [scores_BN.clone().requires_grad_(), memory_BNMD.clone().requires_grad_()]
    chosen = straight_through_select(*ours, k, temperature=tau, estimator=estimator, mask_BN=mask_BN)
    (chosen.memory_BKX * upstream_BKMD).sum().backward()

    plain = [scores_BN.clone().requires_grad_(), memory_BNMD.clone().requires_grad_()]
    z_BKN = selection_matrix(plain[0], k, temperature=tau, estimator=estimator, mask_BN=mask_BN)
    memory_BKMD = torch.einsum("bkn,bnmd->bkmd", z_BKN, plain[1])
    (memory_BKMD * upstream_BKMD).sum().backward()

    assert torch.equal(chosen.memory_BKX, memory_BKMD)
    for mine, oracle in zip(ours, plain, strict=True):
        # Observed: 2e-15 of the largest entry.
        torch.testing.assert_close(mine.grad, oracle.grad, rtol=1e-12, atol=1e-12 * float(oracle.grad.abs().max() + 1))
    if masked:
        assert torch.equal(ours[0].grad[~mask_BN], torch.zeros_like(ours[0].grad[~mask_BN]))
        assert ours[0].grad[mask_BN].abs().min() > 0 or tau == 0.02


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("k", [1, 3])
def test_backward_equals_the_definition_slot_by_slot(estimator, k):
    scores_BN, memory_BNMD, _ = _world(seed=5, b=1)
    upstream_BKMD = torch.randn(1, k, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    scores_BN.requires_grad_()
    chosen = straight_through_select(scores_BN, memory_BNMD, k, temperature=0.1, estimator=estimator)
    (chosen.memory_BKX * upstream_BKMD).sum().backward()
    gain_KN = torch.einsum("kmd,nmd->kn", upstream_BKMD[0], memory_BNMD[0]).tolist()
    expected = _slot_by_slot_gradient(scores_BN[0].tolist(), gain_KN, chosen.indices_BK[0].tolist(), 0.1, estimator)
    torch.testing.assert_close(scores_BN.grad[0], torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-12)


def test_one_slot_by_hand():
    # s / tau = ln 4, ln 1: p = (0.8, 0.2). Gains 10 and 0: ds = p * (gain - 8) / tau = (1.6, -1.6) / 0.5.
    scores_BN = torch.tensor([[0.5 * math.log(4), 0.0]], dtype=torch.float64, requires_grad=True)
    memory_BNX = torch.tensor([[[10.0], [0.0]]], dtype=torch.float64)
    for estimator in ESTIMATORS:
        chosen = straight_through_select(scores_BN, memory_BNX, 1, temperature=0.5, estimator=estimator)
        assert chosen.memory_BKX.item() == 10.0
        (gradient,) = torch.autograd.grad(chosen.memory_BKX.sum(), scores_BN)
        torch.testing.assert_close(gradient, torch.tensor([[3.2, -3.2]], dtype=torch.float64))


def test_leave_own_out_by_hand():
    # p = (0.5, 0.25, 0.25); slot 0 reads document 0, slot 1 document 1 (the tie). One upstream unit on slot 1 only.
    # Rivals of slot 1: documents 0 and 2 with w = (0.5, 0.25), mean gain (2 * 9 + 3) / 3 = 7:
    # ds = w * (gain - 7) / tau = (0.5 * 2, 0, 0.25 * -4).
    scores_BN = torch.tensor([[math.log(2), 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    memory_BNX = torch.tensor([[[9.0], [100.0], [3.0]]], dtype=torch.float64)
    chosen = straight_through_select(scores_BN, memory_BNX, 2, temperature=1.0, estimator="leave_own_out")
    assert chosen.indices_BK.tolist() == [[0, 1]]
    (gradient,) = torch.autograd.grad(chosen.memory_BKX[0, 1, 0], scores_BN)
    torch.testing.assert_close(gradient, torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64))


def test_sequential_gives_a_taken_document_exactly_nothing():
    """Also where the gap is far above the 0.368 at which the published mask fails."""
    scores_BN = torch.tensor([[3.0, 0.1, 0.0]], requires_grad=True)
    z_BKN = selection_matrix(scores_BN, 2, temperature=0.02)
    assert torch.equal(z_BKN, torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]))
    (gradient,) = torch.autograd.grad(z_BKN[0, 1, 2], scores_BN)
    soft = 1 / (1 + math.exp(5))
    assert gradient[0, 0].item() == 0.0
    torch.testing.assert_close(gradient[0, 2].item(), soft * (1 - soft) / 0.02, rtol=1e-5, atol=0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_huge_gaps_at_a_low_temperature_stay_finite(estimator, k):
    scores_BN = torch.tensor([[5e4, 1.0, -1.0, -5e4], [0.9, 0.9, 0.9, 0.9]], requires_grad=True)
    memory_BNX = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    chosen = straight_through_select(scores_BN, memory_BNX, k, temperature=0.02, estimator=estimator)
    chosen.memory_BKX.square().sum().backward()
    assert torch.isfinite(scores_BN.grad).all()


def test_leave_own_out_where_one_document_holds_all_the_mass():
    """The scale of slot 0 underflows to 0, so its slot is silent; slot 1 still judges document 0, against 2 and 3."""
    scores_BN = torch.tensor([[10.0, 0.02, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    memory_BNX = torch.tensor([[[1.0], [2.0], [4.0], [7.0]]], dtype=torch.float64)
    chosen = straight_through_select(scores_BN, memory_BNX, 2, temperature=0.02, estimator="leave_own_out")
    (slot_0,) = torch.autograd.grad(chosen.memory_BKX[0, 0, 0], scores_BN, retain_graph=True)
    assert slot_0[0, 0].item() == 0.0
    assert 0 <= slot_0.abs().max().item() < 1e-200
    (slot_1,) = torch.autograd.grad(chosen.memory_BKX[0, 1, 0], scores_BN)
    # Document 0 is nearly all of slot 1's competition as well: only the far tail feels anything.
    assert slot_1[0, 1].item() == 0.0
    assert slot_1.abs().max().item() < 1e-200


def test_leave_own_out_with_a_tail_below_fp32():
    """Two documents share the mass and hold both slots; slot 0 compares document 1 with a tail of e^-500."""
    scores_BN = torch.tensor([[1.0, 1.0, -9.0]], dtype=torch.float64, requires_grad=True)
    memory_BNX = torch.tensor([[[1.0], [2.0], [4.0]]], dtype=torch.float64)
    chosen = straight_through_select(scores_BN, memory_BNX, 2, temperature=0.02, estimator="leave_own_out")
    (gradient,) = torch.autograd.grad(chosen.memory_BKX[0, 0, 0], scores_BN)
    assert gradient[0, 0].item() == 0.0
    assert math.isclose(gradient[0, 2].item(), 0.5 * math.exp(-500) * (4 - 2) / 0.02, rel_tol=1e-9)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_as_many_slots_as_candidates(estimator):
    scores_BN = torch.tensor([[0.1, 0.2]], dtype=torch.float64, requires_grad=True)
    memory_BNX = torch.tensor([[[1.0], [5.0]]], dtype=torch.float64)
    chosen = straight_through_select(scores_BN, memory_BNX, 2, temperature=0.1, estimator=estimator)
    (gradient,) = torch.autograd.grad(chosen.memory_BKX.sum(), scores_BN)
    p = 1 / (1 + math.e)
    # sequential: slot 0 chooses between both, slot 1 has no choice. leave_own_out: neither slot has one.
    expected = 0.0 if estimator == "leave_own_out" else p * (1 - p) * (1 - 5) / 0.1
    torch.testing.assert_close(gradient, torch.tensor([[expected, -expected]], dtype=torch.float64))


def test_of_sequential_a_prefix_of_slots_is_the_same_choice_with_fewer_slots():
    scores_BN, memory_BNMD, mask_BN = _world(seed=3)
    scores_BN.requires_grad_()
    whole = straight_through_select(scores_BN, memory_BNMD, 5, temperature=0.1, mask_BN=mask_BN)
    part = straight_through_select(scores_BN, memory_BNMD, 2, temperature=0.1, mask_BN=mask_BN)
    assert torch.equal(part.indices_BK, whole.indices_BK[:, :2])
    (g_whole,) = torch.autograd.grad(whole.memory_BKX[:, :2].sum(), scores_BN)
    (g_part,) = torch.autograd.grad(part.memory_BKX.sum(), scores_BN)
    torch.testing.assert_close(g_whole, g_part, rtol=1e-12, atol=1e-13)


def test_the_first_slot_of_several_leaves_its_own_out_also_when_it_alone_is_read():
    scores_BN, memory_BNMD, _ = _world(seed=3)
    scores_BN.requires_grad_()
    gradients = []
    for k in (5, 1):
        chosen = straight_through_select(scores_BN, memory_BNMD, k, temperature=0.1, estimator="leave_own_out")
        (gradient,) = torch.autograd.grad(chosen.memory_BKX[:, :1].sum(), scores_BN)
        gradients.append(gradient.gather(1, chosen.indices_BK[:, :1]))
    first_of_five, alone = gradients
    assert not first_of_five.any()
    assert alone.abs().min() > 0.1


def test_only_gradients_that_are_needed_are_made():
    scores_BN, memory_BNMD, _ = _world()
    frozen = straight_through_select(scores_BN.requires_grad_(), memory_BNMD, 2, temperature=0.1)
    frozen.memory_BKX.sum().backward()
    assert memory_BNMD.grad is None
    assert scores_BN.grad.abs().sum() > 0

    memory_BNMD.requires_grad_()
    hard = straight_through_select(scores_BN.detach(), memory_BNMD, 2, temperature=0.1)
    (hard.memory_BKX * 3.0).sum().backward()
    expected = torch.zeros_like(memory_BNMD)
    for row, indices in enumerate(hard.indices_BK.tolist()):
        expected[row, indices] = 3.0
    assert torch.equal(memory_BNMD.grad, expected)

    neither = straight_through_select(scores_BN.detach(), memory_BNMD.detach(), 2, temperature=0.1)
    assert not neither.memory_BKX.requires_grad


def test_padding_may_hold_anything_in_the_backward_pass():
    scores_BN = torch.tensor([[0.2, 0.1, 0.0, math.nan]], requires_grad=True)
    memory_BNX = torch.tensor([[[1.0], [2.0], [4.0], [math.inf]]])
    mask_BN = torch.tensor([[True, True, True, False]])
    for estimator in ESTIMATORS:
        chosen = straight_through_select(
            scores_BN, memory_BNX, 2, temperature=0.1, estimator=estimator, mask_BN=mask_BN
        )
        (gradient,) = torch.autograd.grad(chosen.memory_BKX.sum(), scores_BN)
        assert torch.isfinite(gradient).all()
        assert gradient[0, 3].item() == 0.0
        assert gradient[0, :3].abs().sum() > 0


def test_half_precision_memories_are_contracted_in_fp32_also_under_autocast():
    """Gains near 1000 that differ by 1: bf16, with a step of 4 there, would lose the difference."""
    scores_BN = torch.zeros(1, 2, requires_grad=True)
    memory_BNX = torch.tensor([[[1000.0, 1.0], [1000.0, 0.0]]], dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        chosen = straight_through_select(scores_BN, memory_BNX, 1, temperature=1.0)
        loss = chosen.memory_BKX.float().sum()
        (gradient,) = torch.autograd.grad(loss, scores_BN)
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(gradient, torch.tensor([[0.25, -0.25]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "at least one slot"),
        ({"k": 4}, "row 0 has too few candidates for 4 slots"),
        ({"mask_BN": torch.tensor([[True] * 3, [True, False, False]])}, "row 1 has too few candidates for 2 slots"),
        ({"mask_BN": torch.ones(2, 3)}, "mask does not fit"),
        ({"scores_BN": torch.tensor([[0.0, 0.0, 0.0], [0.0, math.nan, 0.0]])}, "nan at row 1, candidate 1"),
        ({"scores_BN": torch.tensor([[math.inf, 0.0, 0.0], [0.0, 0.0, 0.0]])}, "inf at row 0, candidate 0"),
        ({"memory_BNX": torch.zeros(2, 4, 5)}, "memories do not fit"),
        ({"memory_BNX": torch.zeros(2, 3)}, "memories do not fit"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"temperature": math.nan}, "temperature must be positive"),
        ({"estimator": "reinmax"}, "sequential or leave_own_out"),
    ],
)
def test_what_does_not_fit_is_said(change, message):
    arguments = {"scores_BN": torch.zeros(2, 3), "memory_BNX": torch.zeros(2, 3, 5), "k": 2, "temperature": 0.02}
    with pytest.raises(SelectionError) as raised:
        straight_through_select(**{**arguments, **change})
    assert message in str(raised.value)


def test_scores_must_be_rows_of_candidates():
    with pytest.raises(SelectionError, match="scores have the wrong shape"):
        top_k(torch.zeros(3), 1)
