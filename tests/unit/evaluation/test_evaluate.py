from __future__ import annotations

import json
import math
from dataclasses import replace
from statistics import fmean

import ir_measures
import pytest

from clara_dist.data.questions import EvalQuestion
from clara_dist.errors import DataError
from clara_dist.evaluation import AnswerScores, Bm25Ranker, EvaluationReport, LatentRanker, evaluate
from clara_dist.evaluation.evaluate import answer_records, survey
from clara_dist.evaluation.records import read_records


@pytest.fixture
def rankers(store, reasoner):
    return {"BM25": Bm25Ranker(store, lambda title, text: text), "joint STE": LatentRanker(reasoner, store, store)}


def test_every_figure_by_hand(store, questions, rankers, generator):
    report = evaluate(questions, store, rankers, generator, max_tokens=7, batch_size=2)
    joint = report["joint STE"]
    # Candidates, best first: fjord oslo rome | rome lima bern | lima oslo bern.
    assert joint.candidates.recall == pytest.approx({1: (0 + 1 + 0.5) / 3, 3: 1.0, 5: 1.0})
    # Corpus: fjord oslo lima | rome fjord lima | lima rome oslo fjord/bern...: bern is fourth.
    assert joint.corpus.recall == pytest.approx({1: 0.5, 3: (1 + 1 + 0.5) / 3, 5: 1.0})
    # Answers: fjord (wrong), rome (right), lima (one of two words: F1 2 * 1 / (1 + 2)).
    for scope in (joint.candidates, joint.corpus):
        assert scope.answers.exact_match == pytest.approx(1 / 3)
        assert scope.answers.f1 == pytest.approx((0 + 1 + 2 / 3) / 3)
    oracle = report["oracle"]
    assert oracle.candidates.recall is None
    assert oracle.corpus.answers.exact_match == 1.0  # reads both positives of question 3
    assert report["closed book"].corpus.answers.exact_match == 0.0
    assert report["BM25"].corpus.recall[1] == pytest.approx((1 + 1 + 0) / 3)
    assert [row.method for row in report.methods] == ["BM25", "joint STE", "oracle", "closed book"]


def test_equal_readings_are_generated_once(store, questions, rankers, generator):
    report = evaluate(questions, store, rankers, generator, max_tokens=7, batch_size=2)
    distinct = {(record.question_id, record.doc_ids) for record in report.records}
    assert generator.n_asked == len(distinct) < len(report.records) == 4 * 2 * 3
    assert generator.largest_batch == 2


def test_top_k_documents_are_read_best_first(store, questions, rankers, generator):
    report = evaluate(questions, store, rankers, generator, top_k=2, recall_at=(2,), max_tokens=7)
    answers = {(r.method, r.scope, r.question_id): r.answer for r in report.records}
    assert answers["joint STE", "corpus", "q1"] == "fjord oslo"
    assert answers["joint STE", "candidates", "q3"] == "lima oslo"
    assert answers["oracle", "corpus", "q3"] == "lima bern"
    assert answers["closed book", "corpus", "q3"] == "nothing"
    assert report["joint STE"].corpus.answers.cover_match == pytest.approx(2 / 3)


def test_without_candidates_there_is_no_such_column(store, questions, rankers, generator):
    bare = [EvalQuestion(q.question_id, q.question, q.answers, q.positives) for q in questions]
    report = evaluate(bare, store, rankers, generator, max_tokens=7)
    assert report["joint STE"].candidates is None
    assert report.n_candidates is None
    assert "given" not in report.table()
    assert report["joint STE"].corpus.recall[1] == 0.5


def test_table_and_files(store, questions, rankers, generator, tmp_path):
    report = evaluate(questions, store, {"joint STE": rankers["joint STE"]}, generator, max_tokens=7)
    assert report.table().splitlines() == [
        "                       3 given candidates               all 5 documents",
        "                 R@1    R@3    R@5     EM      R@1    R@3    R@5     EM",
        "-----------------------------------------------------------------------",
        "joint STE      0.500  1.000  1.000  0.333    0.500  0.833  1.000  0.333",
        "oracle             -      -      -  1.000        -      -      -  1.000",
        "closed book        -      -      -  0.000        -      -      -  0.000",
        "3 questions; answers read the best document; sampling error at most 0.289",
    ]
    report.write(tmp_path / "out")
    tree = json.loads((tmp_path / "out" / "report.json").read_text())
    assert tree["methods"][0]["corpus"]["recall"] == {"1": 0.5, "3": pytest.approx(5 / 6), "5": 1.0}
    assert (tree["n_questions"], tree["n_documents"], tree["n_candidates"], tree["top_k"]) == (3, 5, [3, 3], 1)
    assert "records" not in tree
    assert read_records(tmp_path / "out" / "answers.parquet") == list(report.records)
    assert len(report.records) == 3 * 2 * 3
    first = report.records[0]
    assert (first.doc_ids, first.scores) == (("fjord",), AnswerScores(0.0, 0.0, 0.0))
    assert (first.ranking, first.first_positive) == (("fjord", "oslo", "rome"), 2)
    # Cosines with unit vectors.
    norm = math.sqrt(0.9**2 + 0.1**2 + 0.2**2 + 1.0**2)
    assert first.ranking_scores == pytest.approx((1.0 / norm, 0.9 / norm, 0.1 / norm))
    assert (tmp_path / "out" / "table.txt").read_text() == f"{report.table()}\n\n{report.measures_table()}\n"


def test_measures_by_hand_and_by_the_tools_of_trec(store, questions, rankers, generator, tmp_path):
    """Corpus rankings: fjord OSLO lima | ROME fjord lima | LIMA rome oslo fjord BERN or BERN fjord."""
    report = evaluate(questions, store, rankers, generator, max_tokens=7)
    measures = report["joint STE"].corpus.measures
    assert measures["P@1"] == pytest.approx((0 + 1 + 1) / 3)
    assert measures["P@3"] == pytest.approx((1 + 1 + 1) / 9)
    assert measures["RR@5"] == pytest.approx((1 / 2 + 1 + 1) / 3)
    place = next(r for r in report.records if (r.method, r.scope, r.question_id) == ("joint STE", "corpus", "q3"))
    bern = place.ranking.index("bern") + 1
    ideal = 1 + 1 / math.log2(3)
    of_q3 = (1 + 1 / math.log2(bern + 1)) / ideal
    assert measures["nDCG@5"] == pytest.approx((1 / math.log2(3) + 1 + of_q3) / 3)
    assert place.positives == ("lima", "bern")

    report.write(tmp_path)
    qrels = list(ir_measures.read_trec_qrels(str(tmp_path / "runs" / "qrels.trec")))
    for method, name in (("joint STE", "joint-STE"), ("BM25", "BM25")):
        for scope in ("candidates", "corpus"):
            run = list(ir_measures.read_trec_run(str(tmp_path / "runs" / f"{name}-{scope}.trec")))
            scores = getattr(report[method], scope)
            for measure in ("R@1", "R@3", "nDCG@5", "P@3"):
                again = ir_measures.calc_aggregate([ir_measures.parse_measure(measure)], qrels, run)
                assert next(iter(again.values())) == pytest.approx(scores.measures[measure]), (method, scope, measure)


def test_without_answers_only_retrieval_is_evaluated(store, questions, rankers, generator):
    silent = [replace(question, answers=()) for question in questions]
    report = evaluate(silent, store, rankers, generator, max_tokens=7)
    assert generator.n_asked == 0
    assert [row.method for row in report.methods] == ["BM25", "joint STE"]
    assert report["joint STE"].corpus.answers is None
    assert report["joint STE"].corpus.recall[1] == 0.5
    assert "answers" not in report.table()
    assert {record.answer for record in report.records} == {None}
    with pytest.raises(DataError, match="for all questions or for none"):
        evaluate([*silent[:1], *questions[1:]], store, rankers, generator)


def test_figures_beside_published_ones(store, questions, rankers, generator):
    report = evaluate(questions, store, rankers, generator, max_tokens=7)
    lines = report.beside({"joint STE, corpus, R@1": 0.9, "oracle, corpus, EM": 1.0, "oracle, corpus, R@1": 0.5})
    assert [line.split()[-2:] for line in lines[1:]] == [["0.5000", "0.9000"], ["1.0000", "1.0000"], ["-", "0.5000"]]
    assert report.figure("joint STE, candidates, F1") == pytest.approx((0 + 1 + 2 / 3) / 3)
    assert report.figure("nobody, corpus, R@1") is None
    assert report.beside({}) == []


def test_pieces_make_the_report_of_the_whole(store, questions, rankers, generator):
    whole = evaluate(questions, store, rankers, generator, max_tokens=7)
    options = {"top_k": 1, "recall_at": (1, 3, 5), "max_tokens": 7}
    pieces = [r for q in questions for r in answer_records([q], store, rankers, generator, **options)]
    again = EvaluationReport.of(pieces, (1, 3, 5), **survey(questions, 1).facts(5, 5, 1, 7))
    assert again.to_dict() == whole.to_dict()


def test_the_order_of_records_does_not_show_in_a_mean(store, questions, rankers, generator):
    """Thirds, sevenths and tenths, whose sum in floats depends on the order."""
    record = evaluate(questions, store, rankers, generator, max_tokens=7).records[0]
    values = [1 / n for n in range(1, 400)]
    records = [replace(record, scope="corpus", measures={"R@1": value}, scores=None) for value in values]
    facts = survey(questions, 1).facts(5, 5, 1, 7)
    means = [EvaluationReport.of(order, [1], **facts)[record.method].corpus for order in (records, records[::-1])]
    assert means[0] == means[1]
    assert means[0].measures["R@1"] == fmean(values) != sum(values) / len(values)


def test_what_cannot_be_evaluated_is_said(store, questions, rankers, generator):
    with pytest.raises(DataError, match="no questions"):
        evaluate([], store, rankers, generator)
    with pytest.raises(DataError, match="'q1' has fewer candidates"):
        evaluate(questions, store, rankers, generator, top_k=4)
    stranger = EvalQuestion("q9", "Where?", ("x",), ("paris",), ("oslo", "rome", "lima"))
    with pytest.raises(DataError, match="'paris'"):
        evaluate([*questions, stranger], store, rankers, generator)
