"""Question-answering data sets in their published layouts, as rows of CLaRa's own form.

=============  =====================================================================================================
``hotpotqa``   HotpotQA and 2WikiMultiHopQA: ``{_id, question, answer, supporting_facts, context}``, as their JSON files
               have it and as the Hugging Face hub has it (``context: {title[], sentences[][]}``)
``musique``    MuSiQue: ``{id, question, answer, answer_aliases, paragraphs: [{title, paragraph_text, is_supporting}]}``
``dpr``        Natural Questions and others in DPR's form: ``{question, answers, positive_ctxs, hard_negative_ctxs}``
``clara``      CLaRa's own. NQ-open (``{question, answer[]}``) is one of its forms, with no documents of its own
=============  =====================================================================================================

A paragraph becomes one text: its title, a line feed, its sentences. Title and text are thus one document for the hash
that names it and for the compressor that reads it, whichever reader it came through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clara_dist.config.training import DataFormat
from clara_dist.data.documents import BadRow, checked_text, content_id


def layout_of(row: Mapping[str, Any]) -> DataFormat:
    """The layout of a row, by fields that no other has."""
    if "paragraphs" in row:
        return "musique"
    if "positive_ctxs" in row:
        return "dpr"
    return "hotpotqa" if "context" in row and "supporting_facts" in row else "clara"


def clara_row(row: Mapping[str, Any], layout: DataFormat = "auto") -> Mapping[str, Any]:
    """A row in CLaRa's form, ``{question_id?, question, docs[], answer[], pos_index[], answerable?}``.

    ``answer`` lists every accepted spelling, the first of them the one to train on. ``answerable: false`` is of a
    question that its paragraphs do not answer (MuSiQue has such): nothing can be learnt or measured with it.

    Raises:
        BadRow: It is not of that layout.
    """
    layout = layout_of(row) if layout == "auto" else layout
    if layout == "clara":
        return row
    if layout == "musique":
        return _musique(row)
    return _dpr(row) if layout == "dpr" else _hotpotqa(row)


def joined(title: Any, text: Any) -> str:
    """The one text of a paragraph."""
    parts = [
        checked_text("a paragraph's title", title, may_be_empty=True),
        checked_text("a paragraph's text", text, may_be_empty=True),  # some of Wikipedia's are a title alone
    ]
    return checked_text("a paragraph", "\n".join(part.strip() for part in parts if part.strip()))


def _hotpotqa(row: Mapping[str, Any]) -> dict[str, Any]:
    context, facts = _required(row, "context"), _required(row, "supporting_facts")
    try:
        paragraphs = _columns(context, "title", "sentences")
        supporting = {title for title, _ in _columns(facts, "title", "sent_id")}
        # HotpotQA's sentences begin with their space, 2WikiMultiHopQA's do not.
        texts = [joined(title, " ".join(s.strip() for s in sentences if s.strip())) for title, sentences in paragraphs]
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise BadRow(f"context or supporting_facts is not as HotpotQA has it ({error})") from None
    positives = [i for i, (title, _) in enumerate(paragraphs) if title in supporting]
    return _row(row, texts, [row.get("answer")], positives)


def _columns(value: Any, first: str, second: str) -> list[tuple[Any, Any]]:
    """Pairs, or an object of two lists as `datasets` has them."""
    if isinstance(value, Mapping):
        return list(zip(value[first], value[second], strict=True))
    return [(one, other) for one, other in value]


def _musique(row: Mapping[str, Any]) -> dict[str, Any]:
    paragraphs = _objects(row, "paragraphs")
    texts = [joined(p.get("title", ""), p.get("paragraph_text")) for p in paragraphs]
    positives = [i for i, p in enumerate(paragraphs) if p.get("is_supporting")]
    return _row(row, texts, [row.get("answer"), *(row.get("answer_aliases") or [])], positives)


def _dpr(row: Mapping[str, Any]) -> dict[str, Any]:
    right = [joined(p.get("title") or "", p.get("text")) for p in _objects(row, "positive_ctxs")]
    wrong = [joined(p.get("title") or "", p.get("text")) for p in _objects(row, "hard_negative_ctxs", may_lack=True)]
    # The right ones stand first in the file. A place that tells them must not reach a prompt, so their hashes decide.
    texts = sorted({*right, *wrong}, key=content_id)
    answers = row.get("answers")
    return _row(row, texts, answers if isinstance(answers, list) else [answers], [texts.index(t) for t in set(right)])


def _row(row: Mapping[str, Any], texts: Sequence[str], answers: Sequence[Any], positives: Sequence[int]) -> Any:
    made: dict[str, Any] = {"question": row.get("question"), "docs": list(texts), "pos_index": sorted(positives)}
    given = [answer for answer in answers if answer is not None and answer != ""]  # some aliases are empty
    if given:
        made["answer"] = list(dict.fromkeys(given)) if all(isinstance(answer, str) for answer in given) else given
    question_id = next((row[name] for name in ("_id", "id", "question_id") if row.get(name) is not None), None)
    if row.get("answerable") is False:
        made["answerable"] = False
    return made if question_id is None else {"question_id": str(question_id), **made}


def _objects(row: Mapping[str, Any], name: str, *, may_lack: bool = False) -> list[Mapping[str, Any]]:
    value = row.get(name)
    if value is None and may_lack:
        return []
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        raise BadRow(f"missing {name}" if value is None else f"{name} is not a list of objects")
    return value


def _required(row: Mapping[str, Any], name: str) -> Any:
    if row.get(name) is None:
        raise BadRow(f"missing {name}")
    return row[name]
