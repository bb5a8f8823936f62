from __future__ import annotations

from clara_dist.bench.multi_hop import RUNS, _scores
from clara_dist.config.training import StageConfig
from clara_dist.data.questions import EvalQuestion
from clara_dist.evaluation.answers import AnswerScores
from clara_dist.evaluation.records import AnswerRecord
from clara_dist.evaluation.report import EvaluationReport, MethodScores, ScopeScores

POSITIVES = (("ann-pet", "ann-coat"), ("ann-pet", "ann-door"), ("bob-pet", "bob-coat"))
FOUND = (("ann-coat", "ann-pet"), ("bob-coat", "bob-pet"), ("bob-pet", "ann-pet"))


def test_both_documents_must_be_among_those_that_are_read() -> None:
    questions = [EvalQuestion(f"q{i}", "?", ("x",), positives, ()) for i, positives in enumerate(POSITIVES)]
    records = tuple(
        AnswerRecord(f"q{i}", "?", "reasoner", "corpus", found, "x", ("x",), AnswerScores(float(i == 0), 0.0, 0.0))
        for i, found in enumerate(FOUND)
    )
    scores = ScopeScores({1: 0.5, 2: 2 / 3}, AnswerScores(1 / 3, 0.0, 0.0))
    report = EvaluationReport(3, 8, 8, None, 2, (1, 2), 32, (MethodScores("reasoner", None, scores),), records)
    found = _scores(report, questions, "reasoner")
    assert found["R@2"] == 2 / 3
    assert (found["both@K"], found["EM"]) == (1 / 3, 1 / 3)


def test_every_run_is_a_setting_of_the_joint_stage() -> None:
    assert len(set(RUNS)) == len(RUNS)
    for run in RUNS:
        values = dict(override.split("=") for override in run.overrides)
        stage = StageConfig.model_validate({"stage": "joint", "data": "d", "store": "s", "steps": 1} | values)
        assert (stage.top_k, stage.resolved_estimator) == (run.k, run.estimator)
