"""The messages that change a served store: documents that come, documents that go."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from clara_dist.config.http import Reply, question_text

# What may be the text or the name of something: not empty, without NUL, and Unicode.
_Text = Annotated[str, AfterValidator(question_text)]
DocId = Annotated[_Text, Field(max_length=512)]


def title_text(text: str) -> str:
    """The title itself: a text, or empty."""
    return text and question_text(text)


class NewDocument(BaseModel):
    """One document; a ``doc_id`` is made up where there is none."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    doc_id: DocId | None = None
    title: Annotated[str, AfterValidator(title_text)] = ""
    text: _Text
    metadata: dict[str, Any] = {}


class DocumentsRequest(BaseModel):
    """``POST /v1/documents``.

    ``on_existing`` says what becomes of a document whose id the store has: ``error`` refuses the whole request,
    ``skip`` keeps the stored one, ``replace`` takes the new one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    documents: list[NewDocument] = Field(min_length=1)
    on_existing: Literal["error", "skip", "replace"] = "error"


class DocumentsReply(Reply):
    """All of them are in version ``store_version``; questions find them once their replies name it or a later one.

    ``doc_ids`` are in the order of the request. ``n_passages`` rows were written: long documents are split.
    """

    store_version: int
    doc_ids: list[str]
    n_passages: int


class RemoveRequest(BaseModel):
    """``DELETE /v1/documents``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    doc_ids: list[DocId] = Field(min_length=1)


class RemoveReply(Reply):
    """Version ``store_version`` shows none of them; ``missing`` were not there. ``n_passages`` rows have left."""

    store_version: int
    n_passages: int
    missing: list[str]
