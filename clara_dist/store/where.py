"""Filters: which rows of a store are searched, exported or deleted, by their typed metadata columns.

``source = 'wiki' and (year >= 2020 or year is null)``: an expression, or a mapping as shorthand for equality.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from clara_dist.errors import FilterError
from clara_dist.store.conditions import AllOf, Condition, OneOf
from clara_dist.store.expression import parse_expression
from clara_dist.store.schema import StoreSchema, metadata_column
from clara_dist.store.typed_values import column_kind, typed_value


@dataclass(frozen=True)
class Where:
    """A filter that fits a store's columns. Immutable, picklable; equal ones let the same rows through.

    Attributes:
        condition: What must be true of a row.
        kinds: The metadata columns that it reads, with their types; sorted.
        text: As it was written.
    """

    condition: Condition
    kinds: tuple[tuple[str, str], ...]
    text: str = field(compare=False)

    @property
    def arrow_columns(self) -> list[str]:
        """The columns of a shard that `matches` needs."""
        return [metadata_column(name) for name, _ in self.kinds]

    def matches(self, batch: pa.RecordBatch) -> np.ndarray:
        """Which rows of a shard it lets through, bool ``[S]``: where it is true, so not where it is unknown.

        Args:
            batch: At least its `arrow_columns`.
        """
        mask = self.condition.mask(batch)
        return (mask.fill_null(False) if mask.null_count else mask).to_numpy(zero_copy_only=False)


# How people give a filter: an expression, or metadata column -> the value, or a list of the values, that it may have.
Filter: TypeAlias = str | Mapping[str, Any] | Where


def parse_where(where: Filter, schema: StoreSchema) -> Where:
    """Understand a filter, and check it against a store's columns.

    Args:
        where: An expression; or a mapping of metadata columns to the value, or a list of the values, that a row may
            have: ``{"source": "wiki", "year": [2020, 2021]}``; or what this function returned.
        schema: Of the store.

    Raises:
        FilterError: It cannot be read, is too long or too deep, names a column that the store lacks, or has a value
            that is not of its column's type. Nothing else, whatever the text is.
    """
    if isinstance(where, Where):
        # It may come from another store, or another version of this one.
        for name, kind in where.kinds:
            if (found := column_kind(schema, name)) != kind:
                raise FilterError(
                    f"the filter was made for another type of metadata column {name!r}", got=kind, expected=found
                )
        return where
    if isinstance(where, str):
        condition: Condition = parse_expression(where, schema)
    elif isinstance(where, Mapping):
        condition = _equality(where, schema)
    else:
        raise FilterError(
            "a filter is an expression or a mapping of columns to values",
            got=type(where).__name__,
            hint="such as \"source = 'wiki' and year >= 2020\"",
        )
    kinds = {name: column_kind(schema, name) for name in condition.columns()}
    return Where(condition, tuple(sorted(kinds.items())), where if isinstance(where, str) else str(dict(where)))


def _equality(where: Mapping[str, Any], schema: StoreSchema) -> Condition:
    parts = []
    for name, value in where.items():
        kind = column_kind(schema, name)
        values = value if isinstance(value, list | tuple | set | frozenset) else [value]
        parts.append(OneOf(name, tuple(typed_value(name, kind, each) for each in values)))
    return AllOf(tuple(parts))


class RowCache:
    """The rows of the filters that were used last. Safe to use from several threads.

    Args:
        max_filters: Keep at most so many.
        max_bytes: And no more bytes of rows than this; larger ones alone are not kept.
    """

    def __init__(self, max_filters: int = 8, max_bytes: int = 128 << 20) -> None:
        self._max_filters = max_filters
        self._max_bytes = max_bytes
        self._rows: OrderedDict[Where, np.ndarray] = OrderedDict()
        self._lock = Lock()

    def get(self, where: Where) -> np.ndarray | None:
        """The rows, int64, read-only; None if they are not here."""
        with self._lock:
            if where in self._rows:
                self._rows.move_to_end(where)
            return self._rows.get(where)

    def put(self, where: Where, rows: np.ndarray) -> None:
        """Keep rows, which nobody may change from now on."""
        rows.flags.writeable = False
        if rows.nbytes > self._max_bytes:
            return
        with self._lock:
            self._rows[where] = rows
            self._rows.move_to_end(where)
            while len(self._rows) > self._max_filters or self._n_bytes() > self._max_bytes:
                self._rows.popitem(last=False)

    def _n_bytes(self) -> int:
        return sum(rows.nbytes for rows in self._rows.values())
