"""The messages of the HTTP interface, for the server and its client."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def question_text(text: str) -> str:
    """The text itself, if it can be a question; else a `ValueError`."""
    if not text.strip():
        raise ValueError("must not be empty")
    if "\0" in text:
        raise ValueError("must not contain NUL")
    # JSON's escapes can spell half a surrogate pair; that is no Unicode text, and no tokenizer takes it.
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("must not contain lone surrogates")
    return text


Question = Annotated[str, AfterValidator(question_text), Field(json_schema_extra={"minLength": 1, "pattern": r"\S"})]
# Which documents may be found: an expression on metadata columns, such as ``year >= 2020 and lang = 'en'``.
Filter = Annotated[str, Field(min_length=1, max_length=4096)]


class RetrieveRequest(BaseModel):
    """``POST /v1/retrieve``. A field that is left out takes the server's default."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    question: Question
    top_k: int | None = Field(None, ge=1)
    where: Filter | None = None


class AnswerRequest(RetrieveRequest):
    """``POST /v1/answers``."""

    max_tokens: int | None = Field(None, ge=1)


class Reply(BaseModel):
    """What a server says."""

    # A newer server may say more than this client knows.
    model_config = ConfigDict(frozen=True, extra="ignore")


class Source(Reply):
    """A document that an answer rests on; ``score`` is the cosine of query and memory.

    ``parent_id`` is the document that ``doc_id`` is a passage of: ``doc_id`` itself where it is all of it.
    """

    doc_id: str
    parent_id: str
    title: str
    score: float
    text: str


class LatentWord(Reply):
    """A token that one of the question's vectors decodes to through the LM head.

    Tokens that are no words are pieces of them. ``added``: the best source has the word, the question does not.
    """

    text: str
    probability: float
    is_word: bool
    added: bool


class Timings(Reply):
    """Where a request's time went in the engine, in seconds.

    ``queue`` waits for others to be retrieved; ``reason`` and ``retrieve`` are shared by the questions that come
    together, ``retrieve`` includes the way to the retriever and back; ``generate`` is all from there on, of which
    ``first_token`` until the first token.
    """

    queue: float
    reason: float
    retrieve: float
    first_token: float = 0.0
    generate: float = 0.0
    total: float


class Usage(Reply):
    """Tokens of one answer. ``prompt_tokens`` counts memory tokens, too."""

    prompt_tokens: int
    completion_tokens: int


class RetrieveReply(Reply):
    """Sources, best first, and the versions that they come from.

    ``model_version`` is a hash of the model's content: equal values mean equal models, whatever their directories.
    ``missing_shards`` counts the parts of the store that did not answer: what they hold was not searched.
    """

    sources: list[Source]
    timings: Timings
    model_version: str
    store_version: int
    missing_shards: int = 0


class AnswerReply(RetrieveReply):
    """An answer; ``finish_reason`` is ``length`` where max_tokens cut it."""

    answer: str
    finish_reason: str
    usage: Usage


class Health(Reply):
    """``GET /healthz`` of a server that can answer."""

    status: str = "ok"
    model_version: str
    store_version: int
    n_documents: int
    missing_shards: int = 0


class Ready(Reply):
    """``GET /readyz`` of a server that can answer."""

    status: str = "ready"


class ErrorBody(Reply):
    """An error in OpenAI's shape; ``param`` names the field of the request that is wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorReply(Reply):
    """The body of every answer that is not 2xx."""

    error: ErrorBody
