"""Columns and values of a filter, against the types of a store's metadata columns."""

from __future__ import annotations

import sys
from typing import Any

from clara_dist.errors import FilterError
from clara_dist.store.schema import StoreSchema, is_metadata_value

_SHOWN = 60


def column_kind(schema: StoreSchema, name: Any, place: str = "") -> str:
    """Type of a metadata column: ``string``, ``int64``, ``float64`` or ``bool``.

    Args:
        schema: Of the store.
        name: The column.
        place: Where in the filter it stands, for the message; such as `` at character 7``.

    Raises:
        FilterError: The store has no such typed column.
    """
    columns = schema.metadata_columns
    if not isinstance(name, str) or name not in columns:
        raise FilterError(
            f"the store has no metadata column {shorten(repr(name))} to filter by{place}",
            expected=", ".join(f"{column} ({kind})" for column, kind in columns.items()) or "(it has none)",
            hint="name the column when the corpus is compressed",
        )
    return columns[name]


def typed_value(name: str, kind: str, value: Any, place: str = "") -> Any:
    """A value as its column holds it: an int becomes a float in a column of those.

    Args:
        name: The column.
        kind: Its type.
        value: What the filter has.
        place: As for `column_kind`.

    Raises:
        FilterError: The value is not of the column's type, or has no place in it.
    """
    if not _fits(value, kind):
        raise FilterError(
            f"the filter on {shorten(repr(name))} has a value of another type{place}",
            got=shorten(repr(value)),
            expected=kind,
        )
    return float(value) if kind == "float64" else value


def _fits(value: Any, kind: str) -> bool:
    if not is_metadata_value(value, kind):
        return False
    if kind == "string":
        # A lone surrogate is a legal Python string that no UTF-8 column can hold.
        return not any("\ud800" <= character <= "\udfff" for character in value)
    # Also false of NaN. An int may be larger than any float.
    return kind != "float64" or abs(value) <= sys.float_info.max


def shorten(text: str) -> str:
    """At most so much of what a client sent as fits in a message."""
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
