"""Evaluation: retrieval methods and answers, compared on the same questions."""

from clara_dist.evaluation.answers import AnswerScores, normalized_words, score_answer
from clara_dist.evaluation.baselines import Bm25Ranker
from clara_dist.evaluation.evaluate import CLOSED_BOOK, ORACLE, TEXT_RAG, evaluate
from clara_dist.evaluation.rankers import LatentRanker, Ranker, Ranking
from clara_dist.evaluation.records import AnswerRecord
from clara_dist.evaluation.report import EvaluationReport, MethodScores, ScopeScores

__all__ = [
    "CLOSED_BOOK",
    "ORACLE",
    "TEXT_RAG",
    "AnswerRecord",
    "AnswerScores",
    "Bm25Ranker",
    "EvaluationReport",
    "LatentRanker",
    "MethodScores",
    "Ranker",
    "Ranking",
    "ScopeScores",
    "evaluate",
    "normalized_words",
    "score_answer",
]
