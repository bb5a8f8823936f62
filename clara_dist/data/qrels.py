"""Questions and judgements in files of their own, as BEIR and TREC have them."""

from __future__ import annotations

import io
from collections.abc import Iterator

from clara_dist.data.documents import BadRow, checked_text
from clara_dist.data.json_lines import row_error
from clara_dist.data.questions import EvalQuestion
from clara_dist.data.rows import iter_rows
from clara_dist.data.streams import open_bytes
from clara_dist.errors import DataError

_HEADER = ("query-id", "corpus-id", "score")


def read_judged(queries: str, qrels: str) -> list[EvalQuestion]:
    """Questions that have judgements, in the order of their file; all of them without answers.

    Args:
        queries: Rows of ``{_id | id, text}``, as BEIR's ``queries.jsonl``; those of other splits, which ``qrels`` does
            not name, are left out.
        qrels: Lines of ``query-id <tab> corpus-id <tab> score`` with that header (BEIR), or ``qid 0 docid relevance``
            (TREC). Scores above 0 are degrees of relevance.

    Raises:
        DataError: A row is wrong, an id comes twice, a judged question is not there, or nothing is relevant.
    """
    grades: dict[str, dict[str, int]] = {}
    for place, query_id, doc_id, grade in _judgements(qrels):
        judged = grades.setdefault(query_id, {})
        if doc_id in judged:
            raise row_error(place, BadRow(f"{doc_id!r} is judged twice for {query_id!r}"))
        if grade > 0:
            judged[doc_id] = grade
    questions: dict[str, EvalQuestion] = {}
    for place, row in iter_rows(queries):
        try:
            query_id = checked_text("_id", str(row.get("_id", row.get("id"))))
            text = checked_text("text", row.get("text"))
            if query_id in questions:
                raise BadRow(f"_id {query_id!r} comes twice")
        except BadRow as bad:
            raise row_error(place, bad) from None
        found = grades.get(query_id)
        if found:
            questions[query_id] = EvalQuestion(query_id, text, (), tuple(found), (), tuple(found.values()))
    missing = [query_id for query_id, found in grades.items() if found and query_id not in questions]
    if missing or not questions:
        raise DataError(
            f"{qrels} and {queries} do not fit together",
            got=f"{len(missing)} judged questions are not there, the first is {missing[0]!r}" if missing else "nothing",
            expected="a question for every judgement, and some relevant documents",
        )
    return list(questions.values())


def _judgements(path: str) -> Iterator[tuple[str, str, str, int]]:
    """(place, query id, doc id, grade)."""
    with open_bytes(path) as stream:
        for number, line in enumerate(io.TextIOWrapper(stream, encoding="utf-8"), start=1):
            place = f"{path}, line {number}"
            # BEIR parts by tabs, and its ids may have spaces; TREC parts by white space.
            fields = line.rstrip("\r\n").split("\t") if "\t" in line else line.split()
            if tuple(fields) == _HEADER or not any(fields):
                continue
            if len(fields) == 4:
                fields = [fields[0], *fields[2:]]
            try:
                query_id, doc_id, grade = fields
                yield place, query_id, doc_id, int(grade)
            except ValueError:
                bad = BadRow(f"expected query-id, corpus-id, score (or qid 0 docid relevance), got {line[:80]!r}")
                raise row_error(place, bad) from None
