"""Swaps on losses whose every value can be worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from clara_dist.errors import SelectionError
from clara_dist.evaluation.selection_report import summarize
from clara_dist.evaluation.swaps import Swaps, measure_swaps

TAU = 0.5


def linear(questions_S: torch.Tensor, memory_SKMD: torch.Tensor) -> torch.Tensor:
    """<a_j, M_j> summed over the slots, with another a_j for each slot and question."""
    weight_K = torch.arange(1.0, memory_SKMD.shape[1] + 1)
    return (memory_SKMD.flatten(2).sum(2) * weight_K).sum(1) * (questions_S + 1)


def quadratic(questions_S: torch.Tensor, memory_SKMD: torch.Tensor) -> torch.Tensor:
    """(sum of all slots - 3) ** 2, for memories of one number."""
    return (memory_SKMD.sum((1, 2, 3)) - 3) ** 2


def world(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores_BN = torch.rand(4, 6, generator=generator)
    memory_BNMD = torch.randn(4, 6, 2, 3, generator=generator)
    return scores_BN, memory_BNMD, torch.arange(6) < 6 - torch.arange(4)[:, None]


@pytest.mark.parametrize("k", [1, 2])
def test_a_linear_loss_is_estimated_exactly(k: int) -> None:
    scores_BN, memory_BNMD, mask_BN = world()
    swaps = measure_swaps(linear, scores_BN, memory_BNMD, k, temperature=TAU, mask_BN=mask_BN, batch_size=5)
    torch.testing.assert_close(swaps.linear_BKN, swaps.true_BKN, rtol=1e-5, atol=1e-5)  # observed: 2e-6
    assert swaps.true_BKN.abs().max() > 1
    assert torch.equal(swaps.true_BKN[~mask_BN[:, None].expand(-1, k, -1)], torch.zeros(6 * k, dtype=torch.float64))
    report = summarize([swaps], [None], temperature=TAU)
    (only,) = {group.right_signs for group in report.swaps}
    assert only == 1.0
    # With one slot nothing is excluded: the estimator is the exact update, if its estimates are.
    if k == 1:
        assert [e.estimator for e in report.estimators] == ["sequential"]
        assert report.estimators[0].cosine == pytest.approx(1, abs=1e-9)


def test_a_quadratic_loss_by_hand() -> None:
    """Memories 2, 0, 4 and scores with p = (1/2, 1/4, 1/4); K = 1 reads document 0: L = (2 - 3)^2 = 1, dL/dM = -2.

    Document 1 instead: L = 9, truly +8, linearly -2 * (0 - 2) = +4. Document 2: L = 1, truly 0, linearly -4.
    """
    scores_BN = torch.tensor([[TAU * math.log(2), 0.0, 0.0]], dtype=torch.float64)
    memory_BNMD = torch.tensor([2.0, 0.0, 4.0]).reshape(1, 3, 1, 1)
    swaps = measure_swaps(
        quadratic, scores_BN, memory_BNMD, 1, temperature=TAU, mask_BN=torch.ones(1, 3, dtype=torch.bool)
    )
    assert swaps.indices_BK.tolist() == [[0]]
    assert swaps.true_BKN.tolist() == [[[0, 8, 0]]]
    assert swaps.linear_BKN.tolist() == [[[0, 4, -4]]]
    # True mean under p: 2; p (D - 2) / tau = (1/2 * -2, 1/4 * 6, 1/4 * -2) / tau. Linear mean: 0.
    exact, estimated = torch.tensor([-1.0, 1.5, -0.5]) / TAU, torch.tensor([0.0, 1.0, -1.0]) / TAU
    torch.testing.assert_close(swaps.exact_BN[0], exact.double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(swaps.gradients_BN["sequential"][0], estimated.double(), rtol=1e-6, atol=1e-6)
    report = summarize([swaps], [torch.tensor([[True, False, False]])], temperature=TAU)
    assert report.estimators[0].cosine == pytest.approx(2 / math.sqrt(3.5 * 2))
    assert report.estimators[0].gold_down == 0.0
    group = report.group("gold -> outsider", slot=1)
    assert group is not None
    # The swap that changes nothing has no sign to be right about.
    assert (group.n, group.true, group.linear, group.right_signs) == (2, 4.0, 0.0, 1.0)


def test_a_swap_keeps_the_other_slots_and_may_read_a_document_twice() -> None:
    """Memories 2, 1, 5, of which the first two are read: L = 0. Slot 2 with document 0: 2 + 2 - 3 = 1, L = 1."""
    memory_BNMD = torch.tensor([2.0, 1.0, 5.0]).reshape(1, 3, 1, 1)
    swaps = measure_swaps(
        quadratic,
        torch.tensor([[0.3, 0.2, 0.1]]),
        memory_BNMD,
        2,
        temperature=TAU,
        mask_BN=torch.ones(1, 3, dtype=torch.bool),
        batch_size=1,
    )
    assert swaps.true_BKN.tolist() == [[[0, 1, 9], [1, 0, 16]]]
    # The slope is 0 where L is: all estimates vanish, and so do the updates; there is nothing to compare.
    assert not swaps.linear_BKN.any()
    report = summarize([swaps], [None], temperature=TAU)
    assert [(e.estimator, e.cosine) for e in report.estimators] == [("sequential", None), ("leave_own_out", None)]
    assert "No estimator has a gradient here" in report.table()


def test_too_few_candidates_for_the_slots() -> None:
    scores_BN, memory_BNMD, mask_BN = world()
    with pytest.raises(SelectionError, match="row 3 has too few candidates for 4 slots"):
        measure_swaps(linear, scores_BN, memory_BNMD, 4, temperature=TAU, mask_BN=mask_BN)


def known_swaps() -> Swaps:
    """One question, K = 2 of 4 candidates; the slots hold 0 (gold) and 1. Candidate 3 is padding."""
    return Swaps(
        indices_BK=torch.tensor([[0, 1]]),
        real_BN=torch.tensor([[True, True, True, False]]),
        true_BKN=torch.tensor([[[0, 2, 1, 0], [-1, 0, 0.5, 0]]], dtype=torch.float64),
        linear_BKN=torch.tensor([[[0, -3, -1, 0], [-0.5, 0, -0.5, 0]]], dtype=torch.float64),
        exact_BN=torch.tensor([[-3, 2, 1, 0]], dtype=torch.float64),
        gradients_BN={
            "sequential": torch.tensor([[3, -2, -1, 0]], dtype=torch.float64),
            "leave_own_out": torch.tensor([[-6, 4, 2, 0]], dtype=torch.float64),
        },
    )


def test_swaps_are_split_by_slot_and_by_gold() -> None:
    report = summarize([known_swaps()], [torch.tensor([[True, False, False, False]])], temperature=0.02)
    found = {(g.slot, g.kind): (g.n, g.true, g.linear, g.right_signs) for g in report.swaps}
    assert found == {
        (1, "gold -> outsider"): (2, 1.5, -2.0, 0.0),
        (2, "outsider -> gold"): (1, -1.0, -0.5, 1.0),
        (2, "outsider -> outsider"): (1, 0.5, -0.5, 0.0),
        (None, "gold -> outsider"): (2, 1.5, -2.0, 0.0),
        (None, "outsider -> gold"): (1, -1.0, -0.5, 1.0),
        (None, "outsider -> outsider"): (1, 0.5, -0.5, 0.0),
    }
    assert (report.n_questions, report.n_candidates, report.top_k, report.gold_read) == (1, (3, 3), 2, 1.0)
    assert [e.cosine for e in report.estimators] == pytest.approx([-1, 1])
    assert [e.gold_down for e in report.estimators] == [1.0, 0.0]


def test_the_verdict_says_what_follows() -> None:
    report = summarize([known_swaps()], [torch.tensor([[True, False, False, False]])], temperature=0.02)
    text = report.table()
    assert "misjudges the gold document that it reads itself" in text
    assert "judges rightly a gold document that it could read" in text
    assert "sequential: its update points AWAY" in text
    assert text.splitlines()[-1] == "For K = 2 on this model and data, train with estimator=leave_own_out."
    assert report.to_dict()["verdict"] == report.verdict()


def test_without_known_gold_swaps_are_not_split() -> None:
    report = summarize([known_swaps()], [None], temperature=0.02)
    assert {(g.slot, g.kind, g.n) for g in report.swaps} == {
        (1, "any -> any", 2),
        (2, "any -> any", 2),
        (None, "any -> any", 4),
    }
    assert report.gold_read is None
    assert [e.gold_down for e in report.estimators] == [None, None]
