"""What a corpus is made of, and where its rows have a document's parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

from pydantic import Field, field_validator

from clara_dist.config.base import Config

CorpusFormat = Literal["auto", "jsonl", "clara", "beir", "flashrag", "parquet", "huggingface", "text"]


def parse_pairs(value: Any, separator: str) -> dict[str, str]:
    """``a, b=c.d`` as a mapping, as it is written on a command line; a name alone stands for itself."""
    parts = value.split(",") if isinstance(value, str) else list(value)
    pairs = [str(part).partition(separator) for part in parts]
    if not all(name.strip() for name, _, _ in pairs):
        raise ValueError(f"{value!r} is not NAME{separator}VALUE, ...")
    return {name.strip(): (target or name).strip() for name, _, target in pairs}


class CorpusConfig(Config):
    """A corpus.

    Attributes:
        corpus: Files, directories, globs or URLs, read in this order; ``hf://datasets/ORG/NAME`` is a dataset of the
            Hugging Face hub, with ``@REVISION`` and ``?config=C&split=S`` behind it where needed.
        format: How to read them; ``auto`` decides per file.
        id_field: Where a row has its id, as a path with dots; None: the first of doc_id, id and _id. ``none`` names
            documents by their text, as CLaRa training rows do.
        text_field: Where it has its text; None: text, or contents, whose first line is the title (FlashRAG).
        title_field: Where it has its title; None: title.
        metadata_fields: Further metadata, each a name and where a row has it; also written ``a,b=c.d``.
    """

    corpus: tuple[str, ...] = Field(min_length=1)
    format: CorpusFormat = "auto"
    id_field: str | None = None
    text_field: str | None = None
    title_field: str | None = None
    metadata_fields: dict[str, str] = Field(default_factory=dict)

    @field_validator("metadata_fields", mode="before")
    @classmethod
    def _parse_fields(cls, value: Any) -> Any:
        return value if isinstance(value, dict) else parse_pairs(value, "=")


class SurveyedCorpusConfig(CorpusConfig, ABC):
    """A corpus whose bad rows and repeated ids are found before a job does anything with it.

    Attributes:
        on_duplicate: What a doc_id that stands twice means: an ``error`` before any work, or that the ``first`` or
            ``last`` row in the order of the corpus is kept. The others are rejects, and count as such. A repeated
            text, where texts name the documents, is no duplicate and never a reject: it is kept once.
        rejects: Where rejected rows are listed (jsonl); None: beside what the job writes, with ``.rejects.jsonl``.
        max_rejects: More rejected rows than this fail the job before any work: below 1 a fraction of all rows, from 1
            on a count.
    """

    on_duplicate: Literal["error", "first", "last"] = "first"
    rejects: str | None = None
    max_rejects: float = Field(0.01, ge=0)

    @property
    @abstractmethod
    def rejects_path(self) -> str:
        """Where rejected rows are listed."""

    def allowed_rejects(self, n_rows: int) -> int:
        """How many of ``n_rows`` rows may be rejected."""
        return int(self.max_rejects * n_rows if self.max_rejects < 1 else self.max_rejects)


def beside(path: str, ending: str) -> str:
    """A path with more at its end; the options of a URL, such as its endpoint, stay behind it."""
    place, mark, options = path.partition("?") if "://" in path else (path, "", "")
    return f"{place.rstrip('/')}{ending}{mark}{options}"
