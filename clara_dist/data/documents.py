"""What a corpus is made of: documents, and the rows that cannot become one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ID_FIELDS = ("doc_id", "id", "_id")
TEXT_FIELDS = ("text", "contents")
_EXCERPT_CHARS = 120


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a corpus.

    Attributes:
        doc_id: Unique in its corpus.
        title: May be empty.
        text: Verbatim; never empty or only white space.
        metadata: A JSON object, verbatim.
    """

    doc_id: str
    title: str
    text: str
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reject:
    """A row, or one document of a row, that does not enter the store.

    Attributes:
        path: The file.
        line: 1-based line; in Parquet the 1-based row.
        reason: What is wrong, in one clause.
        doc_id: The document's id, where it got that far.
        excerpt: The beginning of the row.
        repeated: The very same document is in the corpus already, so nothing is lost: worth counting, but no defect
            of the corpus. Only corpora whose ids are content hashes have such rows.
    """

    path: str
    line: int
    reason: str
    doc_id: str | None = None
    excerpt: str = ""
    repeated: bool = False


class BadRow(Exception):
    """A row cannot be used. Caught where its file and line are known, so it never reaches a user."""

    def __init__(self, reason: str, doc_id: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.doc_id = doc_id


def content_id(text: str) -> str:
    """The doc_id of a document that has none: 32 hex digits, a 128-bit hash of its text.

    Corpus rows and training rows both name their documents by it, so a training row finds its documents in the store.
    The text is hashed verbatim: one more space is another document.
    """
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()


def excerpt_of(row: bytes | str) -> str:
    """The beginning of a row, fit for a rejects file whatever its bytes are."""
    if isinstance(row, bytes):
        # A character has at most four bytes; decoding all of a 16 MiB line for 120 characters would be a waste.
        row = row[: 4 * _EXCERPT_CHARS].decode("utf-8", errors="replace")
    return row.strip()[:_EXCERPT_CHARS].encode("utf-8", errors="backslashreplace").decode("utf-8")


def checked_text(name: str, value: Any, *, may_be_empty: bool = False) -> str:
    """``value`` if it is a string that every later step can carry.

    Raises:
        BadRow: It is no string, it is empty or only white space, or it has a NUL or a lone surrogate (JSON can spell
            one, but neither UTF-8 nor Arrow can store it).
    """
    if not isinstance(value, str):
        raise BadRow(f"{name} is {_json_type(value)}, not a string")
    if not may_be_empty and not value.strip():
        raise BadRow(f"{name} is empty" if not value else f"{name} is only white space")
    if "\0" in value:
        raise BadRow(f"{name} contains a NUL character")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow(f"{name} contains a lone surrogate (character {error.start + 1})") from None
    return value


def document_from_row(row: Mapping[str, Any]) -> Document:
    """Build a document from the named fields of a row; fields of other names are not read.

    Fields: ``doc_id``, ``id`` or ``_id`` (a string, or an integer, which becomes its decimal string); ``text`` or
    ``contents``; optional ``title`` and ``metadata``. Null counts as absent.

    Raises:
        BadRow: With the reason, and the doc_id if that was found.
    """
    doc_id = checked_id(*_first_present(row, ID_FIELDS))
    try:
        name, text = _first_present(row, TEXT_FIELDS)
        return Document(
            doc_id=doc_id,
            title=checked_text("title", row["title"], may_be_empty=True) if row.get("title") is not None else "",
            text=checked_text(name, text),
            metadata=_checked_metadata(row.get("metadata")),
        )
    except BadRow as bad:
        bad.doc_id = doc_id
        raise


def checked_id(name: str, value: Any) -> str:
    """A doc_id as the store has it: a string, or an integer as its decimal string.

    Raises:
        BadRow: It is anything else, or empty.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return checked_text(name, value)


def _first_present(row: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, Any]:
    for name in names:
        if row.get(name) is not None:
            return name, row[name]
    raise BadRow(f"missing {names[0]} (no field {', '.join(names[:-1])} or {names[-1]})")


def _checked_metadata(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRow(f"metadata is {_json_type(value)}, not an object")
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeEncodeError:
        raise BadRow("metadata contains a lone surrogate") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRow(f"metadata cannot be written as JSON: {error}") from None
    return value


def _json_type(value: Any) -> str:
    """The type in the words of JSON, which is what the file's author wrote."""
    names: dict[type, str] = {
        bool: "a boolean",
        dict: "an object",
        float: "a number",
        int: "a number",
        list: "an array",
        str: "a string",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)
