"""What the writer's answers must look like. Nothing is repaired: what is wrong is told, and asked for again."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from clara_dist.data.documents import BadRow, checked_text

# Models that think aloud, behind servers that do not take their thoughts out.
_THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_FENCED = re.compile(r"\A```[a-zA-Z]*[ \t]*\n(.*?)\n?[ \t]*```\Z", re.DOTALL)
_PROBLEMS_TOLD = 3


class MalformedAnswer(Exception):
    """An answer cannot be used; the reason is told to the writer, so it is put as plain English."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A question and its answer."""

    question: str
    answer: str


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _Pair(_Strict):
    question: str
    answer: str


class _Pairs(_Strict):
    pairs: list[_Pair]


class _Paraphrases(_Strict):
    paraphrases: list[str]


class _Missing(_Strict):
    missing: list[str]


FormT = TypeVar("FormT", bound=_Strict)


def parse_pairs(text: str, *, at_most: int, earlier: Iterable[str] = ()) -> list[Pair]:
    """Pairs of an answer.

    Args:
        text: The answer.
        at_most: Pairs that were asked for.
        earlier: Questions that exist already.

    Raises:
        MalformedAnswer: It is no such JSON, has no pair or too many, an empty text, or a question that exists already.
    """
    found = _parse(text, _Pairs).pairs
    _check_number("pairs", len(found), 1, at_most)
    pairs = [
        Pair(_text(f"pairs[{i}].question", pair.question), _text(f"pairs[{i}].answer", pair.answer))
        for i, pair in enumerate(found)
    ]
    _check_distinct("question", [pair.question for pair in pairs], {normalized(question) for question in earlier})
    return pairs


def parse_paraphrases(text: str, *, exactly: int, document: str) -> list[str]:
    """Paraphrases of an answer.

    Raises:
        MalformedAnswer: It is no such JSON, has another number of them, an empty one, one twice, or the document.
    """
    found = _parse(text, _Paraphrases).paraphrases
    _check_number("paraphrases", len(found), exactly, exactly)
    paraphrases = [_text(f"paraphrases[{i}]", paraphrase) for i, paraphrase in enumerate(found)]
    _check_distinct("paraphrase", paraphrases, {normalized(document)})
    return paraphrases


def parse_missing(text: str) -> list[str]:
    """Facts that a check found missing, each once; none where all is covered.

    Raises:
        MalformedAnswer: It is no such JSON, or has an empty text.
    """
    facts = [_text(f"missing[{i}]", fact) for i, fact in enumerate(_parse(text, _Missing).missing)]
    return distinct(facts)


def distinct(texts: Iterable[str]) -> list[str]:
    """Each text once, see `normalized`: the first of those that are equal."""
    found: dict[str, str] = {}
    for text in texts:
        found.setdefault(normalized(text), text)
    return list(found.values())


def normalized(text: str) -> str:
    """What two texts have in common that differ only in case, spacing and the marks at their ends."""
    return " ".join(text.casefold().split()).strip(" .?!\"'")


def _parse(text: str, form: type[FormT]) -> FormT:
    body = _THOUGHTS.sub("", text, count=1).strip()
    fenced = _FENCED.match(body)
    if fenced:
        body = fenced[1]
    if not body:
        raise MalformedAnswer("it was empty")
    try:
        return form.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        told = [f"{'.'.join(map(str, each['loc'])) or 'it'}: {each['msg']}" for each in problems[:_PROBLEMS_TOLD]]
        raise MalformedAnswer(f"it was not the JSON that was asked for ({'; '.join(told)})") from None


def _text(name: str, value: str) -> str:
    try:
        return checked_text(name, value).strip()
    except BadRow as bad:
        raise MalformedAnswer(bad.reason) from None


def _check_number(name: str, n: int, least: int, most: int) -> None:
    if not least <= n <= most:
        expected = str(most) if least == most else f"{least} to {most}"
        raise MalformedAnswer(f"it had {n} {name}, expected {expected}")


def _check_distinct(name: str, texts: Iterable[str], taken: Collection[str]) -> None:
    seen = set(taken)
    for text in texts:
        key = normalized(text)
        if key in seen:
            raise MalformedAnswer(f"it repeated a {name} or took what there was already: {text[:200]}")
        seen.add(key)
