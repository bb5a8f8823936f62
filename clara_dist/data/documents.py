"""What a corpus is made of: documents, and the rows that cannot become one."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clara_dist.config.corpus import CorpusConfig

ID_FIELDS = ("doc_id", "id", "_id")
TEXT_FIELDS = ("text", "contents")
# In place of an id's field: the id is the content hash of the text.
CONTENT_ID = "none"
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
class FieldMap:
    """Where a row has a document's parts. A path with dots (``page.title``) leads into objects.

    Attributes:
        doc_id: None: the first that is there of `ID_FIELDS`. `CONTENT_ID`: the document is named by its text.
        text: None: the first that is there of `TEXT_FIELDS`.
        title: None: ``title``.
        metadata: (name, path) of metadata from outside the row's own ``metadata``, which is kept as it is; of equal
            names these win. A row may lack them.
        columns: Names of metadata that is taken from the top of a row where its ``metadata`` has none of that name.
    """

    doc_id: str | None = None
    text: str | None = None
    title: str | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    columns: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, config: CorpusConfig, columns: Iterable[str] = ()) -> FieldMap:
        """The map that settings describe; metadata ``columns`` are found at the top of a row, too."""
        return cls(
            doc_id=config.id_field,
            text=config.text_field,
            title=config.title_field,
            metadata=tuple(sorted(config.metadata_fields.items())),
            columns=tuple(sorted(set(columns) - config.metadata_fields.keys())),
        )

    @property
    def top_level(self) -> frozenset[str]:
        """The names at the top of a row that any path can start with."""
        ids = ID_FIELDS if self.doc_id is None else (self.doc_id,)
        texts = TEXT_FIELDS if self.text is None else (self.text,)
        paths = [*ids, *texts, self.title or "title", "metadata", *(path for _, path in self.metadata)]
        paths += self.columns
        return frozenset(name for path in paths for name in (path, path.partition(".")[0]))


USUAL_FIELDS = FieldMap()


@dataclass(frozen=True, slots=True)
class Reject:
    """A row, or one document of a row, that does not enter the store.

    Attributes:
        path: The file.
        line: 1-based line; in Parquet the 1-based row.
        reason: What is wrong, in one clause.
        doc_id: The document's id, where it got that far.
        excerpt: The beginning of the row.
        repeated: The same text is in the corpus already, so nothing is lost: worth counting, but no defect of the
            corpus. Only corpora whose ids are content hashes have such rows.
        duplicate_of: File and line of the document of the same doc_id that is kept.
    """

    path: str
    line: int
    reason: str
    doc_id: str | None = None
    excerpt: str = ""
    repeated: bool = False
    duplicate_of: str | None = None


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


def document_from_row(row: Mapping[str, Any], fields: FieldMap = USUAL_FIELDS) -> Document:
    """Build a document from the named fields of a row; fields of other names are not read.

    An id is a string, or an integer, which becomes its decimal string. Null counts as absent. ``contents``, where it
    was not named by the user, is FlashRAG's: its first line is the title, in quotation marks or not, if a text follows
    and the row has no title.

    Raises:
        BadRow: With the reason, and the doc_id if that was found.
    """
    by_content = fields.doc_id == CONTENT_ID
    names = ID_FIELDS if fields.doc_id is None else (fields.doc_id,)
    doc_id = None if by_content else checked_id(*_first_present(row, names, "doc_id"))
    try:
        name, text = _first_present(row, TEXT_FIELDS if fields.text is None else (fields.text,), "text")
        text = checked_text(name, text)
        title_name = fields.title or "title"
        title = value_at(row, title_name)
        if title is None and name == "contents" and fields.text is None:
            title, text = _title_of_contents(text)
        return Document(
            doc_id=content_id(text) if doc_id is None else doc_id,
            title="" if title is None else checked_text(title_name, title, may_be_empty=True),
            text=text,
            metadata=_checked_metadata(_metadata_of(row, fields)),
        )
    except BadRow as bad:
        bad.doc_id = doc_id
        raise


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """The value at a path with dots; None if it is null or not there. A field whose own name has dots comes first."""
    if path in row:
        return row[path]
    value: Any = row
    for name in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def _title_of_contents(contents: str) -> tuple[str, str]:
    title, _, text = contents.partition("\n")
    if not text.strip():
        return "", contents
    title = title.strip()
    quoted = len(title) > 1 and title[0] == title[-1] == '"'
    return (title[1:-1] if quoted else title), text


def _metadata_of(row: Mapping[str, Any], fields: FieldMap) -> Any:
    own = row.get("metadata")
    if not isinstance(own, (dict, type(None))):
        return own
    columns = {name: row[name] for name in fields.columns if row.get(name) is not None}
    mapped = {name: value_at(row, path) for name, path in fields.metadata}
    merged = {**columns, **(own or {}), **{name: value for name, value in mapped.items() if value is not None}}
    # Parquet and Arrow have dates, JSON has not; a datetime is a date, too.
    return {k: v.isoformat() if isinstance(v, datetime.date) else v for k, v in merged.items()}


def checked_id(name: str, value: Any) -> str:
    """A doc_id as the store has it: a string, or an integer as its decimal string.

    Raises:
        BadRow: It is anything else, or empty.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return checked_text(name, value)


def _first_present(row: Mapping[str, Any], names: tuple[str, ...], what: str) -> tuple[str, Any]:
    for name in names:
        value = value_at(row, name)
        if value is not None:
            return name, value
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
    raise BadRow(f"missing {what} (no field {listed})")


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
