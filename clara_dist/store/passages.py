"""Rows that are passages of one long document, and the names that tell so.

A document that fits is one row, and its own parent. A document that was split is the rows ``PARENT#1``, ``PARENT#2``,
..., one after the other in one shard.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from clara_dist.errors import StoreError

_PASSAGE = re.compile(r"(.+)#[1-9][0-9]*", re.DOTALL)


def passage_id(parent_id: str, number: int) -> str:
    """``doc_id`` of a document's passage; the first one is number 1."""
    return f"{parent_id}#{number}"


def possible_parent(doc_id: str) -> str | None:
    """The document whose passage would have this name; None if it is no name of a passage."""
    match = _PASSAGE.fullmatch(doc_id)
    return match[1] if match else None


def check_passages(doc_ids: Sequence[str], parent_ids: Sequence[str]) -> None:
    """Refuse rows whose parents do not fit their names.

    Raises:
        StoreError: A document is split but not into passages 1, 2, ... of consecutive rows.
    """
    number = 0
    for row, (doc_id, parent_id) in enumerate(zip(doc_ids, parent_ids, strict=True)):
        if doc_id == parent_id:
            number = 0
            continue
        number = number + 1 if number and parent_id == parent_ids[row - 1] else 1
        if doc_id != passage_id(parent_id, number):
            raise StoreError(
                f"row {row} is not the passage of {parent_id!r} that comes next",
                got=doc_id,
                expected=passage_id(parent_id, number),
                hint="the passages of a document stand one after the other, from #1 on",
            )
