"""The mathematics of CLaRa: straight-through top-k, similarity, losses, metrics. Needs torch and nothing else."""

from clara_dist.core.ablations import Ablation, contrastive_nll, select_without_gradient, soft_mixture
from clara_dist.core.losses import mean_answer_loss, memory_alignment, token_nll
from clara_dist.core.metrics import recall_at_k, score_entropy, score_margin
from clara_dist.core.selection import Estimator, Selection, selection_matrix, straight_through_select, top_k
from clara_dist.core.similarity import cosine_scores

__all__ = [
    "Ablation",
    "Estimator",
    "Selection",
    "contrastive_nll",
    "cosine_scores",
    "mean_answer_loss",
    "memory_alignment",
    "recall_at_k",
    "score_entropy",
    "score_margin",
    "select_without_gradient",
    "selection_matrix",
    "soft_mixture",
    "straight_through_select",
    "token_nll",
    "top_k",
]
