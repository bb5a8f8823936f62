"""A suite's data sets evaluated one after the other, and one page about all of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from urllib.parse import quote

from clara_dist.config.evaluate import EvaluateConfig
from clara_dist.config.suite import SuiteConfig
from clara_dist.distributed import evaluate_job
from clara_dist.evaluation import EvaluationReport

Evaluate = Callable[[EvaluateConfig], EvaluationReport]


def evaluate_suite(suite: SuiteConfig, evaluate: Evaluate = evaluate_job.evaluate) -> dict[str, EvaluationReport]:
    """Evaluate all data sets; with ``settings.resume`` those that are finished are only read.

    Args:
        suite: Writes ``output/NAME/`` for each data set, and ``suite.json``, ``suite.txt`` and ``index.html``.
        evaluate: How one is evaluated.

    Raises:
        ConfigError: A data set's settings are wrong; nothing has run then.
        DataError, FingerprintMismatchError, ClusterError: As of `evaluate_job.evaluate`.
    """
    evaluations = suite.evaluations()
    reports: dict[str, EvaluationReport] = {}
    for name, config in evaluations.items():
        print(f"{name} ({len(reports) + 1} of {len(evaluations)})", flush=True)
        reports[name] = evaluate(config)
    output = Path(suite.output)
    text = suite_text(reports, evaluations)
    (output / "suite.txt").write_text(text + "\n", encoding="utf-8")
    tree = {name: report.to_dict() for name, report in reports.items()}
    (output / "suite.json").write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
    (output / "index.html").write_text(_page(suite, reports, evaluations), encoding="utf-8")
    return reports


def suite_text(reports: Mapping[str, EvaluationReport], evaluations: Mapping[str, EvaluateConfig]) -> str:
    """The tables of all data sets, with published figures beside ours."""
    return "\n\n".join(f"== {name}\n{_section(report, evaluations[name])}" for name, report in reports.items())


def _section(report: EvaluationReport, config: EvaluateConfig) -> str:
    return "\n".join([report.table(), *report.beside(config.published)])


def _page(
    suite: SuiteConfig, reports: Mapping[str, EvaluationReport], evaluations: Mapping[str, EvaluateConfig]
) -> str:
    sections = [
        f"<h2><a href='{quote(name)}/report.html'>{escape(name)}</a></h2>"
        f"<pre>{escape(_section(report, evaluations[name]))}</pre>"
        for name, report in reports.items()
    ]
    head = "<!doctype html><html lang='en'><meta charset='utf-8'><title>Evaluation suite</title>"
    return f"{head}<h1>{escape(suite.about)}</h1>\n" + "\n".join(sections) + "\n</html>\n"
