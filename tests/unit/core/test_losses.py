from __future__ import annotations

import math

import pytest
import torch

from clara_dist.core import mean_answer_loss, memory_alignment, token_nll
from clara_dist.errors import TrainingError


def test_token_nll_by_hand_and_in_fp32():
    logits_PV = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]], dtype=torch.bfloat16)
    nll_P = token_nll(logits_PV, torch.tensor([0, 1]))
    assert nll_P.dtype == torch.float32
    first = math.log1p(math.exp(-float(logits_PV[0, 0])))
    torch.testing.assert_close(nll_P, torch.tensor([first, math.log(2)]))


@pytest.mark.parametrize("label", [-100, -1, 2])
def test_no_label_is_ignored_in_silence(label):
    with pytest.raises(IndexError):
        token_nll(torch.zeros(1, 2), torch.tensor([label]))


def test_shares_of_a_batch_add_up_to_the_gradient_of_the_whole():
    logits_PV = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float32, requires_grad=True)
    labels_P = torch.tensor([0, 6, 3, 3, 1])
    whole = mean_answer_loss(token_nll(logits_PV, labels_P))
    shares = [mean_answer_loss(token_nll(logits_PV[p], labels_P[p]), 5) for p in (slice(0, 1), slice(1, 5))]
    torch.testing.assert_close(sum(shares), whole)
    (g_whole,) = torch.autograd.grad(whole, logits_PV, retain_graph=True)
    (g_shares,) = torch.autograd.grad(sum(shares), logits_PV)
    torch.testing.assert_close(g_whole, g_shares)
    torch.testing.assert_close(whole, token_nll(logits_PV, labels_P).mean())


def test_no_answer_tokens_is_an_error_but_an_empty_share_is_zero():
    nothing_P = torch.zeros(0, requires_grad=True)
    with pytest.raises(TrainingError, match="no answer tokens"):
        mean_answer_loss(nothing_P)
    share = mean_answer_loss(nothing_P, 12)
    assert share.item() == 0.0
    share.backward()
    assert nothing_P.grad is not None


def test_memory_alignment_by_hand():
    memory_BD = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    text_BD = torch.tensor([[0.0, 0.0], [3.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    loss = memory_alignment(memory_BD, text_BD)
    assert loss.dtype == torch.float32
    assert loss.item() == (1 + 4 + 9 + 0) / 4
    loss.backward()
    assert memory_BD.grad.tolist() == [[0.5, 1.0], [-1.5, 0.0]]
    assert text_BD.grad.tolist() == [[-0.5, -1.0], [1.5, 0.0]]
