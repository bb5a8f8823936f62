"""Rows of training and evaluation data, from whatever holds them, in bounded memory.

JSON lines (also gzip or zstd), one JSON array, Parquet, a data set saved by `datasets`, ``hf://datasets/ORG/NAME``; on
a disk or in an object store; a file, a pattern or a directory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import ijson

from clara_dist.data.corpus.huggingface import HUB_PREFIX
from clara_dist.data.corpus.sources import Source, find_sources
from clara_dist.data.corpus.tables import iter_table_rows
from clara_dist.data.corpus.units import RowFormat
from clara_dist.data.documents import BadRow
from clara_dist.data.json_lines import iter_objects, row_error, skip_bom
from clara_dist.data.streams import open_bytes
from clara_dist.errors import DataError
from clara_dist.store import files
from clara_dist.store.storage import open_storage


def iter_rows(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row), every row an object; a place reads ``rows.jsonl, line 3`` or ``hotpot.json, item 3``.

    Raises:
        DataError: Something cannot be read, or a row is no object; names the place.
    """
    for source in find_sources([name], "auto"):
        if source.kind == "text":
            raise DataError(f"{source.path} holds texts, and no rows", expected="JSON lines, a JSON array or Parquet")
        if source.kind in ("parquet", "arrow"):
            row_format: RowFormat = "parquet" if source.kind == "parquet" else "arrow"
            for number, row in iter_table_rows(source.path, row_format):
                yield f"{source.path}, row {number}", row
        elif _is_array(source.path):
            yield from _iter_items(source.path)
        else:
            for number, row in iter_objects(source.path):
                yield f"{source.path}, line {number}", row


def source_state(name: str) -> list[tuple[str, int, float]]:
    """(path, bytes, time of the last change) of every file of the data: equal as long as nobody touched it.

    A data set of the hub has no files before it is downloaded: its name stands for it.

    Raises:
        DataError: There is no such data.
    """
    if name.startswith(HUB_PREFIX):
        return [(name, 0, 0.0)]
    return [_state(source) for source in find_sources([name], "auto")]


def _state(source: Source) -> tuple[str, int, float]:
    if not files.is_url(source.path):
        found = os.stat(source.path)
        return source.path, found.st_size, found.st_mtime
    folder, file = files.split(source.path)
    return source.path, files.size_bytes(source.path) or 0, open_storage(folder).modified_at("").get(file, 0.0)


def _is_array(path: str) -> bool:
    with open_bytes(path) as stream:
        skip_bom(stream)
        while byte := stream.read(1):
            if not byte.isspace():
                return byte == b"["
    return False


def _iter_items(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    with open_bytes(path) as stream:
        skip_bom(stream)
        try:
            for number, item in enumerate(ijson.items(stream, "item", use_float=True), 1):
                place = f"{path}, item {number}"
                if not isinstance(item, dict):
                    raise row_error(place, BadRow("the item is valid JSON but no object"))
                yield place, item
        except ijson.JSONError as error:
            reason = " ".join(str(error).split())
            raise row_error(f"{path}, behind item {number}", BadRow(f"invalid JSON: {reason}")) from None
