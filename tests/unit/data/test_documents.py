from __future__ import annotations

import pickle
from typing import Any

import pytest

from clara_dist.data.documents import BadRow, Document, Reject, content_id, document_from_row, excerpt_of


def reason_of(row: dict[str, Any]) -> str:
    with pytest.raises(BadRow) as caught:
        document_from_row(row)
    return caught.value.reason


def test_content_id_is_pinned_and_verbatim() -> None:
    # A change would orphan every training file of an existing store. By `printf "The cat sat." | b2sum -l 128`.
    assert content_id("The cat sat.") == "74069be3e2b45a9a7a7f46c1acba87a5"
    assert content_id("The cat sat. ") != content_id("The cat sat.")
    assert len(content_id("é")) == 32


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"doc_id": "a", "text": "t"}, Document("a", "", "t", {})),
        ({"id": "a", "contents": "t"}, Document("a", "", "t", {})),
        ({"_id": "a", "title": "", "text": "t"}, Document("a", "", "t", {})),
        ({"doc_id": 7, "text": "t"}, Document("7", "", "t", {})),
        ({"doc_id": "a", "id": "b", "_id": "c", "text": "t", "contents": "u"}, Document("a", "", "t", {})),
        ({"doc_id": None, "id": "b", "text": "t", "title": None, "metadata": None}, Document("b", "", "t", {})),
        (
            {"id": "a", "title": " T ", "text": " t\n", "metadata": {"year": 2020, "tags": ["x"]}, "url": "u"},
            Document("a", " T ", " t\n", {"year": 2020, "tags": ["x"]}),
        ),
    ],
)
def test_a_document_comes_from_the_named_fields_verbatim(row: dict[str, Any], expected: Document) -> None:
    assert document_from_row(row) == expected


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "missing doc_id (no field doc_id, id or _id)"),
        ({"doc_id": None, "text": "t"}, "missing doc_id (no field doc_id, id or _id)"),
        ({"doc_id": "", "text": "t"}, "doc_id is empty"),
        ({"_id": " \t", "text": "t"}, "_id is only white space"),
        ({"id": 1.5, "text": "t"}, "id is a number, not a string"),
        ({"id": True, "text": "t"}, "id is a boolean, not a string"),
        ({"id": ["a"], "text": "t"}, "id is an array, not a string"),
        ({"id": "a\0", "text": "t"}, "id contains a NUL character"),
        ({"id": "a"}, "missing text (no field text or contents)"),
        ({"id": "a", "text": ""}, "text is empty"),
        ({"id": "a", "contents": "\n\u2003"}, "contents is only white space"),
        ({"id": "a", "text": {"a": 1}}, "text is an object, not a string"),
        ({"id": "a", "text": "x\0y"}, "text contains a NUL character"),
        ({"id": "a", "text": "ab\ud800"}, "text contains a lone surrogate (character 3)"),
        ({"id": "a", "text": "t", "title": 3}, "title is a number, not a string"),
        ({"id": "a", "text": "t", "title": "\udfff"}, "title contains a lone surrogate (character 1)"),
        ({"id": "a", "text": "t", "metadata": "x"}, "metadata is a string, not an object"),
        ({"id": "a", "text": "t", "metadata": [1]}, "metadata is an array, not an object"),
        ({"id": "a", "text": "t", "metadata": {"k": ["\ud800"]}}, "metadata contains a lone surrogate"),
        (
            {"id": "a", "text": "t", "metadata": {"k": b"x"}},
            "metadata cannot be written as JSON: Object of type bytes is not JSON serializable",
        ),
        (
            {"id": "a", "text": "t", "metadata": {"k": float("nan")}},
            "metadata cannot be written as JSON: Out of range float values are not JSON compliant: nan",
        ),
    ],
)
def test_every_defect_has_its_reason(row: dict[str, Any], reason: str) -> None:
    # Python 3.10 and 3.11 do not name the float.
    assert reason.startswith(reason_of(row))


def test_a_bad_row_tells_the_id_that_it_had() -> None:
    with pytest.raises(BadRow) as caught:
        document_from_row({"doc_id": 12, "text": ""})
    assert caught.value.doc_id == "12"


def test_an_excerpt_is_short_and_storable_whatever_the_row_is() -> None:
    assert excerpt_of(b"\xff\xfe" + b"x" * 10**6) == "\ufffd\ufffd" + "x" * 118
    assert excerpt_of('{"a": "\ud800"}') == '{"a": "\\ud800"}'
    assert len(excerpt_of(("é" * 10**4).encode())) == 120


def test_documents_and_rejects_cross_processes() -> None:
    document = Document("a", "T", "t", {"k": 1})
    reject = Reject("f", 3, "why", None, "x")
    assert pickle.loads(pickle.dumps((document, reject))) == (document, reject)
