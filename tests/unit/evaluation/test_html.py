"""The HTML report: its figures by hand, and a file that stands alone."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from clara_dist.evaluation import Bm25Ranker, LatentRanker, evaluate
from clara_dist.evaluation.html import Drawn, margin, write_html


class Reader(HTMLParser):
    """Tags, attributes that name something elsewhere, and text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action")]

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def report(store, questions, reasoner, generator):
    rankers = {"BM25": Bm25Ranker(store, lambda title, text: text), "joint STE": LatentRanker(reasoner, store, store)}
    return evaluate(questions, store, rankers, generator, max_tokens=7)


def test_curves_and_margins_by_hand(report):
    """Corpus: fjord OSLO lima.. (1.0, 0.9) | ROME fjord (0.9, 0.3) | LIMA rome oslo BERN (0.9, 0.7)."""
    records = [r for r in report.records if (r.method, r.scope) == ("joint STE", "corpus")]
    drawn = Drawn()
    for record in records:
        drawn.add(record)
    curve = drawn.recall_curve()
    assert curve[:3] == pytest.approx([(0 + 1 + 0.5) / 3, (1 + 1 + 0.5) / 3, (1 + 1 + 0.5) / 3])
    assert curve[-1] == 1.0
    for k in (1, 3, 5):
        assert curve[k - 1] == pytest.approx(report["joint STE"].corpus.recall[k])
    signs = [margin(record) for record in records]
    assert [value > 0 for value in signs] == [False, True, True]
    scores = dict(zip(records[1].ranking, records[1].ranking_scores, strict=True))
    assert signs[1] == pytest.approx(scores["rome"] - scores["fjord"])
    assert margin(replace(records[0], positives=("nowhere",))) is None


def test_the_worst_of_many_failures_are_kept(report):
    records = [r for r in report.records if (r.method, r.scope) == ("joint STE", "corpus")]
    drawn, failed = Drawn(), []
    for i in range(1000):
        gap = ((i * 617) % 1000) / 1000
        scores = (1.0, 1.0 - gap, *records[0].ranking_scores[2:])
        failed.append(replace(records[0], question_id=f"f{i}", ranking_scores=scores))
        drawn.add(failed[-1])
        drawn.add(records[1])
    assert (drawn.n, drawn.n_failed, len(drawn.margins)) == (2000, 1000, 2000)
    assert drawn.failures() == sorted(failed, key=margin)[:25]


def test_the_file_stands_alone_and_says_where_it_fails(report, tmp_path):
    records = tuple(
        replace(r, question=r.question.replace("fjord", "<script>alert(1)</script>")) for r in report.records
    )
    write_html(replace(report, records=records), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    assert "script" not in reader.tags
    assert all(link.startswith("#") for link in reader.links)
    assert not re.findall(r"url\((?!#)|@import|<link", text)
    assert reader.tags.count("svg") == 4
    seen = "".join(reader.text)
    assert "joint STE: the first document is wrong for 1 of 3 questions" in seen
    assert "Which city lies by a <script>alert(1)</script>?" in seen
    assert report.table() in seen
    write_html(replace(report, records=records), tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == text
