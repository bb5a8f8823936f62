"""The losses of every stage, in fp32 whatever the model computes in."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from clara_dist.errors import TrainingError

# No token has this id, so no label is ever ignored in silence: -100, too, is out of range and fails.
_NO_LABEL = -(2**62)


def token_nll(logits_PV: Tensor, labels_P: Tensor) -> Tensor:
    """Negative log-likelihood of each supervised token.

    Args:
        logits_PV: Logits at the P supervised positions only (answer tokens and EOS; never prompt, memory or padding).
        labels_P: int64 token ids; a label outside the vocabulary is an error.

    Returns:
        nll_P, fp32, with gradient to the logits.
    """
    return F.cross_entropy(logits_PV.float(), labels_P, reduction="none", ignore_index=_NO_LABEL)


def mean_answer_loss(nll_P: Tensor, normalizer: float | Tensor | None = None) -> Tensor:
    """Mean over tokens: sum(nll) / normalizer.

    Args:
        nll_P: Losses of this worker's tokens in this micro-batch.
        normalizer: Tokens that the mean is over, if they are not these alone. With the token count of the GLOBAL batch
            (all workers, all accumulation steps) divided by the factor by which the engine averages gradients, any
            split of a batch gives the gradients of the whole. None: the mean of ``nll_P``.

    Returns:
        Scalar, with gradient to ``nll_P``.

    Raises:
        TrainingError: There is no token to take a mean of. (With a normalizer, a share without tokens is 0.)
    """
    if normalizer is None:
        if nll_P.numel() == 0:
            raise TrainingError(
                "the batch has no answer tokens",
                hint="every example needs a non-empty answer that its prompt leaves room for",
            )
        normalizer = nll_P.numel()
    return nll_P.sum() / normalizer


def memory_alignment(memory_state_mean_BD: Tensor, text_state_mean_BD: Tensor) -> Tensor:
    """Mean squared error between the mean memory state and the mean text state of each document.

    It keeps the memory near the states that the base model is used to (arXiv 2511.18659, stage 1, weight 0.1).

    Returns:
        Scalar fp32, the mean over B and D; gradient flows to both arguments.
    """
    return F.mse_loss(memory_state_mean_BD.float(), text_state_mean_BD.float())
