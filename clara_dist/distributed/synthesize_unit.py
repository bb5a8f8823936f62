"""What of a corpus is synthesised already: one file for each unit of work, written anew with each document.

The first line says what the file holds, and what all requests for it came to, in this run and in earlier ones. Each
further line is a document: its training rows, or why it has none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from clara_dist.config.synthesize import SynthesizeConfig
from clara_dist.distributed.compress_scan import UnitWork
from clara_dist.errors import DataError
from clara_dist.store import files
from clara_dist.synthesis import prompts
from clara_dist.synthesis.document import Synthesized
from clara_dist.synthesis.usage import Usage

_FORMAT = 1


@dataclass(frozen=True)
class SynthesisWork:
    """One unit to synthesise.

    Attributes:
        work: The unit of the corpus.
        file: Its file, whose name is decided by the documents and by what is asked of them.
        n_documents: What the scan counted.
        n_wanted: The first so many are to be done.
    """

    work: UnitWork
    file: str
    n_documents: int
    n_wanted: int

    def __str__(self) -> str:
        return f"{self.work.unit} (file {self.file})"


@dataclass(frozen=True)
class Entry:
    """A document that was tried; see `Synthesized`."""

    doc_id: str
    rows: tuple[dict[str, Any], ...]
    missing: tuple[str, ...]
    rounds: int
    failure: str | None

    @classmethod
    def of(cls, made: Synthesized) -> Entry:
        return cls(made.doc_id, made.rows, made.missing, made.rounds, made.failure)


@dataclass(frozen=True)
class UnitHead:
    """The first line of a unit's file.

    Attributes:
        done: Positions of the documents, in their unit, that have their rows.
        failed: Positions of those that failed when they were tried last.
        usage: Of all requests for this unit.
    """

    done: tuple[int, ...] = ()
    failed: tuple[int, ...] = ()
    usage: Usage = field(default_factory=Usage)

    def n_left(self, n_wanted: int) -> int:
        """How many of the first documents have no rows."""
        return n_wanted - sum(position < n_wanted for position in self.done)


@dataclass
class UnitFile:
    """Documents of one unit that were tried, by their position in it, and what they took."""

    entries: dict[int, Entry] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)

    @property
    def head(self) -> UnitHead:
        positions = sorted(self.entries)
        failed = tuple(position for position in positions if self.entries[position].failure is not None)
        return UnitHead(tuple(position for position in positions if position not in failed), failed, self.usage)

    def to_bytes(self) -> bytes:
        head = self.head
        lines: list[dict[str, Any]] = [
            {"format": _FORMAT, "done": head.done, "failed": head.failed, "usage": head.usage.to_dict()}
        ]
        lines += [{"position": position, **asdict(self.entries[position])} for position in sorted(self.entries)]
        return b"".join(json.dumps(line, ensure_ascii=False).encode("utf-8") + b"\n" for line in lines)


def read_unit_file(path: str) -> UnitFile:
    """Read a unit's file.

    Raises:
        DataError: It is damaged.
    """
    with files.open_input(path) as stream:
        head = _head(path, stream.readline())
        entries: dict[int, Entry] = {}
        for line in stream:
            values = _object(path, line)
            try:
                position = values.pop("position")
                values |= {"rows": tuple(values["rows"]), "missing": tuple(values["missing"])}
                entries[position] = Entry(**values)
            except (KeyError, TypeError) as error:
                raise _damaged(path, error) from error
    return UnitFile(entries, head.usage)


def read_unit_head(path: str) -> UnitHead:
    """Read the first line of a unit's file.

    Raises:
        DataError: It is damaged.
    """
    with files.open_input(path) as stream:
        return _head(path, stream.readline())


def unit_file_name(fingerprint: str, work: UnitWork) -> str:
    """The name of a unit's file: the same if the documents, and what is asked of them, are."""
    content = json.dumps([fingerprint, work.unit.identity, work.duplicates])
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest() + ".jsonl"


def settings_fingerprint(config: SynthesizeConfig) -> str:
    """Hash of what is asked, and of whom: rows of other settings are never mixed.

    What only decides how hard an endpoint is worked, where it is and how much patience its answers are met with may
    change from run to run, so that documents that failed can be tried again with more of it.
    """
    synthesis = config.synthesis.model_dump(mode="json", exclude={"max_attempts"})
    endpoint = config.endpoint.model_dump(mode="json", include={"model", "temperature", "extra_body"})
    built_in = [prompts.SIMPLE, prompts.COMPLEX, prompts.PARAPHRASE, prompts.CHECK]
    content = json.dumps([_FORMAT, synthesis, endpoint, built_in], sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def _head(path: str, line: bytes) -> UnitHead:
    values = _object(path, line)
    try:
        if values["format"] != _FORMAT:
            raise ValueError(f"format {values['format']}")
        return UnitHead(tuple(values["done"]), tuple(values["failed"]), Usage.from_dict(values["usage"]))
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _object(path: str, line: bytes) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise _damaged(path, error) from error
    if not isinstance(values, Mapping):
        raise _damaged(path, "no JSON object")
    return dict(values)


def _damaged(path: str, got: object) -> DataError:
    return DataError(f"{path} is damaged", got=got, hint="delete it: its documents are then synthesised again")
