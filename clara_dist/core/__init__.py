"""The mathematics of CLaRa: straight-through top-k, similarity, losses, metrics. Needs torch and nothing else."""

from clara_dist.core.losses import mean_answer_loss, memory_alignment, token_nll
from clara_dist.core.metrics import recall_at_k, score_entropy, score_margin
from clara_dist.core.selection import Estimator, Selection, selection_matrix, straight_through_select, top_k
from clara_dist.core.similarity import cosine_scores

__all__ = [
    "Estimator",
    "Selection",
    "cosine_scores",
    "mean_answer_loss",
    "memory_alignment",
    "recall_at_k",
    "score_entropy",
    "score_margin",
    "selection_matrix",
    "straight_through_select",
    "token_nll",
    "top_k",
]
