"""Rows by the values of their typed metadata columns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clara_dist.errors import StoreError
from clara_dist.store.schema import StoreSchema, is_metadata_value, metadata_column, metadata_type


def accepted_values(schema: StoreSchema, where: Mapping[str, Sequence[Any]]) -> dict[str, pa.Array]:
    """Arrow column -> the values that a row may have in it.

    Raises:
        StoreError: No such typed column, or a value that is not of its type.
    """
    return {metadata_column(name): _accepted_values(schema, name, values) for name, values in where.items()}


def parse_value(schema: StoreSchema, name: str, text: str) -> Any:
    """A value of a metadata column as people write it: a string needs no quotes, a bool is ``true`` or ``false``.

    Raises:
        StoreError: No such typed column, or the text is no value of its type.
    """
    kind = _kind(schema, name)
    if kind == "string":
        return text
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    return _accepted_values(schema, name, [value])[0].as_py()


def matches(batch: pa.RecordBatch, accepted: Mapping[str, pa.Array]) -> np.ndarray:
    """Which rows have accepted values in all these columns, bool ``[S]``; a null is never accepted."""
    keep = np.ones(batch.num_rows, np.bool_)
    for column, values in accepted.items():
        keep &= pc.is_in(batch.column(column), values).to_numpy(zero_copy_only=False)
    return keep


def _kind(schema: StoreSchema, name: str) -> str:
    columns = schema.metadata_columns
    if name not in columns:
        raise StoreError(
            f"the store has no metadata column {name!r} to filter by",
            expected=", ".join(columns) or "(it has none)",
            hint="name the column when the corpus is compressed",
        )
    return columns[name]


def _accepted_values(schema: StoreSchema, name: str, values: Sequence[Any]) -> pa.Array:
    kind = _kind(schema, name)
    for value in values:
        if not is_metadata_value(value, kind):
            raise StoreError(f"the filter on {name!r} has a value of another type", got=repr(value), expected=kind)
    return pa.array(list(values), metadata_type(kind))
