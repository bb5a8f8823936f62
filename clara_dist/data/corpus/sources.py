"""From what the user names (files, patterns, directories, URLs, datasets) to files of known formats."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from clara_dist.data.corpus import huggingface
from clara_dist.data.streams import has_suffix, require_file
from clara_dist.errors import DataError
from clara_dist.store import files

if TYPE_CHECKING:
    from clara_dist.config.corpus import CorpusFormat

# Of a directory not .json: there it is most often a description, and seldom one object per line.
_LINE_SUFFIXES = (".jsonl", ".ndjson")
_PARQUET_SUFFIXES = (".parquet", ".pq")
_ARROW_SUFFIXES = (".arrow",)
_TEXT_SUFFIXES = (".txt", ".md")
_BEIR_NAMES = ("corpus.jsonl", "corpus.jsonl.gz", "corpus.jsonl.zst")


@dataclass(frozen=True)
class Source:
    """One file, or text files of one folder.

    Attributes:
        path: The file; of text files the folder.
        kind: ``lines`` of JSON, ``parquet``, ``arrow`` or ``text``.
        names: Text files, below the folder.
    """

    path: str
    kind: str
    names: tuple[str, ...] = ()


def find_sources(corpus: Sequence[str], wanted: CorpusFormat) -> list[Source]:
    """All files of a corpus in the order in which they were named, each once.

    Raises:
        DataError: Something is not there, or is of no known format.
    """
    seen: set[str] = set()

    def is_new(path: str) -> bool:
        real = path if files.is_url(path) else os.path.realpath(path)
        return not (real in seen or seen.add(real))  # type: ignore[func-returns-value]

    found = []
    for source in (source for name in corpus for source in _sources_of(name, wanted)):
        if source.kind == "text":
            names = tuple(name for name in source.names if is_new(files.join(source.path, name)))
            found += [replace(source, names=names)] if names else []
        elif is_new(source.path):
            found.append(source)
    if not found:
        raise DataError("no corpus was named")
    return found


def _sources_of(name: str, wanted: CorpusFormat) -> list[Source]:
    if name.startswith(huggingface.HUB_PREFIX):
        return [Source(path, "arrow") for path in huggingface.hub_files(name)]
    if files.size_bytes(name) is not None:
        return _of_files(files.split(name)[0], [name], wanted)
    if _has_magic(name):
        matches = [path for path in files.glob(name) if not _is_hidden(_below(_fixed_part(name), path))]
        if not matches:
            raise DataError(f"no file matches {name}")
        return _of_files(_fixed_part(name), matches, wanted)
    if files.is_folder(name):
        return _of_folder(name, wanted)
    require_file(name)
    raise DataError(f"{name} cannot be read")


def _of_files(folder: str, paths: Sequence[str], wanted: CorpusFormat) -> list[Source]:
    kinds = [_kind(path, wanted) for path in paths]
    texts = tuple(_below(folder, path) for path, kind in zip(paths, kinds, strict=True) if kind == "text")
    found = [Source(path, kind) for path, kind in zip(paths, kinds, strict=True) if kind != "text"]
    return [*found, Source(folder, "text", texts)] if texts else found


def _kind(path: str, wanted: CorpusFormat) -> str:
    if wanted in ("jsonl", "clara", "beir", "flashrag"):
        return "lines"
    if wanted in ("parquet", "text"):
        return wanted
    if wanted == "huggingface" or has_suffix(path, _ARROW_SUFFIXES):
        return "arrow"
    if has_suffix(path, (*_LINE_SUFFIXES, ".json"), compressed=True):
        return "lines"
    if has_suffix(path, _PARQUET_SUFFIXES):
        return "parquet"
    if has_suffix(path, _TEXT_SUFFIXES):
        return "text"
    raise DataError(
        f"cannot tell the format of {path} by its name",
        expected=f"{', '.join(_LINE_SUFFIXES)}, .json (or these with .gz or .zst), "
        f"{', '.join((*_PARQUET_SUFFIXES, *_ARROW_SUFFIXES, *_TEXT_SUFFIXES))}",
        hint="rename it, or name the format: jsonl, clara, parquet, huggingface or text",
    )


def _of_folder(folder: str, wanted: CorpusFormat) -> list[Source]:
    """BEIR's corpus file; a saved dataset; else all files of data in it, or if there is none all texts."""
    if wanted in ("auto", "beir", "jsonl", "flashrag"):
        for path in (files.join(folder, name) for name in _BEIR_NAMES):
            if files.size_bytes(path) is not None:
                return [Source(path, "lines")]
    if wanted in ("auto", "huggingface") and not files.is_url(folder) and huggingface.is_saved_dataset(folder):
        return [Source(path, "arrow") for path in huggingface.saved_files(folder)]
    pattern = files.join(folder if files.is_url(folder) else glob.escape(folder), "**")
    paths = [path for path in files.glob(pattern) if not _is_hidden(_below(folder, path))]
    for suffixes in _suffixes_of(wanted):
        chosen = [path for path in paths if has_suffix(path, suffixes, compressed=suffixes[0] in _LINE_SUFFIXES)]
        if chosen:
            return _of_files(folder, chosen, wanted)
    raise DataError(
        f"{folder} is a directory without a file of "
        + ("any known format" if wanted == "auto" else f"the format {wanted}"),
        hint=f"name the files, for example '{files.join(folder, '*.jsonl')}'",
    )


def _suffixes_of(wanted: CorpusFormat) -> Iterator[tuple[str, ...]]:
    if wanted == "auto":
        yield (*_LINE_SUFFIXES, *_PARQUET_SUFFIXES, *_ARROW_SUFFIXES)
    elif wanted == "parquet":
        yield _PARQUET_SUFFIXES
    elif wanted == "huggingface":
        yield _ARROW_SUFFIXES
    elif wanted != "text":
        yield _LINE_SUFFIXES
    if wanted in ("auto", "text"):
        yield _TEXT_SUFFIXES


def _has_magic(name: str) -> bool:
    return glob.has_magic(name.partition("?")[0] if files.is_url(name) else name)


def _fixed_part(pattern: str) -> str:
    """The folder above the first name that has a wildcard."""
    while _has_magic(pattern):
        pattern = files.split(pattern)[0]
    return pattern


def _below(folder: str, path: str) -> str:
    """The path of a file from a folder above it on, with slashes."""
    if not files.is_url(path):
        return os.path.relpath(path, folder).replace(os.sep, "/")
    return path.partition("?")[0].removeprefix(folder.partition("?")[0].rstrip("/")).lstrip("/")


def _is_hidden(path: str) -> bool:
    return any(name.startswith(".") and name not in (".", "..") for name in path.split("/"))
