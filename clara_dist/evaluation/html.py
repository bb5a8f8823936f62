"""An evaluation as one HTML file that opens without a network: figures, curves, and where it fails."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

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
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>Evaluation of {report.n_questions:,} questions</title><style>{_STYLE}</style>",
        f"<h1>Evaluation of {report.n_questions:,} questions</h1>",
        f"<pre>{escape(report.table())}</pre><pre>{escape(report.measures_table())}</pre>",
        *(f"<p>{escape(note)}</p>" for note in notes),
        "<h2>Recall</h2>",
        *(_figure(f"Recall, {scope}", _recall_plot(report, scope)) for scope in scopes),
        "<h2>Score margins</h2><p>Of each question, the score of its best right document less that of the best wrong",
        "one, among what was ranked: above 0 the right one comes first.</p>",
        *(_figure(f"Score margins, {scope}", _margin_plot(report, scope)) for scope in scopes),
        "<h2>Where it fails</h2>",
        *(_failures(report, method) for method in _retrieving(report)),
        "</html>",
    ]
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def recall_curve(records: Sequence[AnswerRecord]) -> list[float]:
    """Mean Recall@k for k = 1, 2, ... up to the depth of the rankings."""
    depth = max(len(record.ranking) for record in records)
    curve = [0.0] * depth
    for record in records:
        wanted, found = set(record.positives), 0
        for k in range(depth):
            if k < len(record.ranking) and record.ranking[k] in wanted:
                wanted.discard(record.ranking[k])
                found += 1
            curve[k] += found / len(record.positives)
    return [total / len(records) for total in curve]


def margin(record: AnswerRecord) -> float | None:
    """Score of the best right document less that of the best wrong one; None unless both were ranked."""
    right, wrong = None, None
    for doc_id, score in zip(record.ranking, record.ranking_scores, strict=True):
        if doc_id in record.positives:
            right = score if right is None else right
        else:
            wrong = score if wrong is None else wrong
    return None if right is None or wrong is None else right - wrong


def _retrieving(report: EvaluationReport) -> list[str]:
    return [row.method for row in report.methods if row.corpus.recall is not None]


def _of(report: EvaluationReport, method: str, scope: Scope) -> list[AnswerRecord]:
    return [record for record in report.records if (record.method, record.scope) == (method, scope)]


def _recall_plot(report: EvaluationReport, scope: Scope) -> Figure:
    figure, axes = _axes(f"Recall@k, {scope}")
    for method in _retrieving(report):
        curve = recall_curve(_of(report, method, scope))
        axes.plot(range(1, len(curve) + 1), curve, marker="o", label=method)
    axes.set(xlabel="k", ylabel="recall", ylim=(0, 1.03))
    axes.legend()
    return figure


def _margin_plot(report: EvaluationReport, scope: Scope) -> Figure:
    figure, axes = _axes(f"Score margins, {scope}")
    methods = _retrieving(report)
    values = [[m for record in _of(report, method, scope) if (m := margin(record)) is not None] for method in methods]
    # Scores of different methods have different units: each is shown in its own spread.
    for place, (method, margins) in enumerate(zip(methods, values, strict=True)):
        spread = max((abs(m) for m in margins), default=0.0) or 1.0
        axes.hist(
            [m / spread for m in margins], bins=40, range=(-1, 1), histtype="step", label=method, color=f"C{place}"
        )
    axes.axvline(0, color="#888", linewidth=1)
    axes.set(xlabel="margin, as a share of the method's largest", ylabel="questions")
    axes.legend()
    return figure


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


def _failures(report: EvaluationReport, method: str) -> str:
    records = _of(report, method, "corpus")
    failed = [record for record in records if record.first_positive != 1]
    # Those that were surest of the wrong document come first.
    failed.sort(key=lambda record: (margin(record) is None, margin(record) or 0.0))
    rows = "".join(map(_failure, failed[:_SHOWN]))
    head = "<tr><th>question</th><th>right documents</th><th>found first</th><th>rank</th><th>answer</th></tr>"
    title = f"{escape(method)}: the first document is wrong for {len(failed):,} of {len(records):,} questions"
    more = f"<p>{_SHOWN} of them; all are in answers.parquet.</p>" if len(failed) > _SHOWN else ""
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
