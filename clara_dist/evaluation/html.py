"""An evaluation as one HTML file that opens without a network: figures, curves, and where it fails."""

from __future__ import annotations

import io
from array import array
from collections.abc import Mapping, Sequence
from html import escape
from itertools import accumulate
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clara_dist.evaluation.records import AnswerRecord, Scope
from clara_dist.evaluation.report import EvaluationReport

# Failures that are shown of each method: enough to see a pattern, few enough to read.
_SHOWN = 25
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
pre { overflow-x: auto; background: #f5f5f5; padding: 1rem; font-size: .85rem; }
figure { display: inline-block; margin: 0 1rem 1rem 0; max-width: 100%; } svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; font-size: .85rem; }
td, th { text-align: left; vertical-align: top; border-bottom: 1px solid #ddd; padding: .3rem .5rem; }
.right { color: #00693e; } .wrong { color: #b00020; } summary { cursor: pointer; padding: .4rem 0; }
"""


def write_html(report: EvaluationReport, path: Path, notes: Sequence[str] = ()) -> None:
    """Write the file; ``notes`` are lines below the tables."""
    scopes: list[Scope] = ["corpus"] if report.n_candidates is None else ["candidates", "corpus"]
    methods = [row.method for row in report.methods if row.corpus.recall is not None]
    drawn = {(method, scope): Drawn() for method in methods for scope in scopes}
    for record in report.records:
        if record.method in methods:
            drawn[record.method, record.scope].add(record)
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>Evaluation of {report.n_questions:,} questions</title><style>{_STYLE}</style>",
        f"<h1>Evaluation of {report.n_questions:,} questions</h1>",
        f"<pre>{escape(report.table())}</pre><pre>{escape(report.measures_table())}</pre>",
        *(f"<p>{escape(note)}</p>" for note in notes),
        "<h2>Recall</h2>",
        *(_figure(f"Recall, {scope}", _recall_plot(drawn, scope)) for scope in scopes),
        "<h2>Score margins</h2><p>Of each question, the score of its best right document less that of the best wrong",
        "one, among what was ranked: above 0 the right one comes first.</p>",
        *(_figure(f"Score margins, {scope}", _margin_plot(drawn, scope)) for scope in scopes),
        "<h2>Where it fails</h2>",
        *(_failures(method, drawn[method, "corpus"]) for method in methods),
        "</html>",
    ]
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


class Drawn:
    """What is shown of one method in one scope: of all but the worst questions a few bytes are kept."""

    def __init__(self) -> None:
        self.n = self.n_failed = 0
        self.margins = array("f")
        self._gains: list[float] = []
        self._failed: list[tuple[tuple[bool, float], int, AnswerRecord]] = []

    def add(self, record: AnswerRecord) -> None:
        """Take in the next record."""
        self.n += 1
        self._gains += [0.0] * (len(record.ranking) - len(self._gains))
        wanted = set(record.positives)
        for k, doc_id in enumerate(record.ranking):
            if doc_id in wanted:
                wanted.discard(doc_id)
                self._gains[k] += 1 / len(record.positives)
        found = margin(record)
        if found is not None:
            self.margins.append(found)
        if record.first_positive != 1:
            self.n_failed += 1
            # Those that were surest of the wrong document come first.
            self._failed.append(((found is None, found or 0.0), self.n, record))
            if len(self._failed) > 8 * _SHOWN:
                self._failed = self._worst()

    def recall_curve(self) -> list[float]:
        """Mean Recall@k for k = 1, 2, ... up to the depth of the rankings."""
        return [total / self.n for total in accumulate(self._gains)]

    def failures(self) -> list[AnswerRecord]:
        """The worst, some at most."""
        return [record for _, _, record in self._worst()]

    def _worst(self) -> list[tuple[tuple[bool, float], int, AnswerRecord]]:
        return sorted(self._failed, key=lambda each: each[:2])[:_SHOWN]


def margin(record: AnswerRecord) -> float | None:
    """Score of the best right document less that of the best wrong one; None unless both were ranked."""
    right, wrong = None, None
    for doc_id, score in zip(record.ranking, record.ranking_scores, strict=True):
        if doc_id in record.positives:
            right = score if right is None else right
        else:
            wrong = score if wrong is None else wrong
    return None if right is None or wrong is None else right - wrong


def _recall_plot(drawn: Mapping[tuple[str, Scope], Drawn], scope: Scope) -> Figure:
    figure, axes = _axes(f"Recall@k, {scope}")
    for method, one in _of(drawn, scope).items():
        curve = one.recall_curve()
        axes.plot(range(1, len(curve) + 1), curve, marker="o", label=method)
    axes.set(xlabel="k", ylabel="recall", ylim=(0, 1.03))
    axes.legend()
    return figure


def _margin_plot(drawn: Mapping[tuple[str, Scope], Drawn], scope: Scope) -> Figure:
    figure, axes = _axes(f"Score margins, {scope}")
    # Scores of different methods have different units: each is shown in its own spread.
    for place, (method, one) in enumerate(_of(drawn, scope).items()):
        margins = np.frombuffer(one.margins, np.float32)
        spread = np.abs(margins).max(initial=0.0) or 1.0
        axes.hist(margins / spread, bins=40, range=(-1, 1), histtype="step", label=method, color=f"C{place}")
    axes.axvline(0, color="#888", linewidth=1)
    axes.set(xlabel="margin, as a share of the method's largest", ylabel="questions")
    axes.legend()
    return figure


def _of(drawn: Mapping[tuple[str, Scope], Drawn], scope: Scope) -> dict[str, Drawn]:
    return {method: one for (method, own), one in drawn.items() if own == scope}


def _axes(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")  # no pyplot: it keeps figures, and picks a display
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.grid(alpha=0.3)
    return figure, axes


def _figure(name: str, figure: Figure) -> str:
    text = io.StringIO()
    # Without a date and with fixed ids the same evaluation gives the same file.
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return f"<figure role='img' aria-label='{escape(name, quote=True)}'>{svg[svg.index('<svg') :]}</figure>"


def _failures(method: str, drawn: Drawn) -> str:
    rows = "".join(map(_failure, drawn.failures()))
    head = "<tr><th>question</th><th>right documents</th><th>found first</th><th>rank</th><th>answer</th></tr>"
    title = f"{escape(method)}: the first document is wrong for {drawn.n_failed:,} of {drawn.n:,} questions"
    more = f"<p>{_SHOWN} of them; all are in answers.parquet.</p>" if drawn.n_failed > _SHOWN else ""
    return f"<details><summary>{title}</summary>{more}<table>{head}{rows}</table></details>"


def _failure(record: AnswerRecord) -> str:
    answer = "-"
    if record.answer is not None and record.scores is not None:
        kind = "right" if record.scores.exact_match else "wrong"
        answer = f"<span class='{kind}'>{escape(record.answer)}</span><br>expected {escape(record.right_answers[0])}"
    found = "<br>".join(
        f"{escape(doc_id)} ({score:.3f})"
        for doc_id, score in list(zip(record.ranking, record.ranking_scores, strict=True))[:3]
    )
    rank = f"beyond {len(record.ranking)}" if record.first_positive is None else str(record.first_positive)
    right = "<br>".join(map(escape, record.positives))
    return (
        f"<tr><td>{escape(record.question)}</td><td>{right}</td><td>{found}</td><td>{rank}</td><td>{answer}</td></tr>"
    )
