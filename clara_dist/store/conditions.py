"""What a filter asks of a row. As in SQL, comparing a missing value is neither true nor false, nor is its NOT."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from clara_dist.store.schema import metadata_column

_COMPARISONS: dict[str, Callable[..., pa.BooleanArray]] = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


class Condition(Protocol):
    """Something that is true, false or unknown of each row. Immutable, with a hash and equality, and picklable."""

    def mask(self, batch: pa.RecordBatch) -> pa.BooleanArray:
        """Of each row of the batch; null where it is unknown."""

    def columns(self) -> Iterator[str]:
        """The metadata columns that it reads; one may come several times."""


@dataclass(frozen=True)
class Comparison:
    """The column's value against one value, which is of the column's type; strings by their code points."""

    column: str
    operator: str
    value: Any

    def mask(self, batch: pa.RecordBatch) -> pa.BooleanArray:
        values = batch.column(metadata_column(self.column))
        return _COMPARISONS[self.operator](values, pa.scalar(self.value, values.type))

    def columns(self) -> Iterator[str]:
        yield self.column


@dataclass(frozen=True)
class OneOf:
    """The column's value is one of these, which are of the column's type."""

    column: str
    values: tuple[Any, ...]

    def mask(self, batch: pa.RecordBatch) -> pa.BooleanArray:
        values = batch.column(metadata_column(self.column))
        found = pc.is_in(values, pa.array(self.values, values.type))
        # is_in says false of a missing value; its NOT would then hold.
        return pc.if_else(pc.is_valid(values), found, pa.scalar(None, pa.bool_())) if values.null_count else found

    def columns(self) -> Iterator[str]:
        yield self.column


@dataclass(frozen=True)
class IsNull:
    """The column has no value."""

    column: str

    def mask(self, batch: pa.RecordBatch) -> pa.BooleanArray:
        return pc.is_null(batch.column(metadata_column(self.column)))

    def columns(self) -> Iterator[str]:
        yield self.column


@dataclass(frozen=True)
class Not:
    """The opposite; unknown stays unknown."""

    part: Condition

    def mask(self, batch: pa.RecordBatch) -> pa.BooleanArray:
        return pc.invert(self.part.mask(batch))

    def columns(self) -> Iterator[str]:
        return self.part.columns()


@dataclass(frozen=True)
class AllOf:
    """All parts hold; of none, every row."""

    parts: tuple[Condition, ...]

    def mask(self, batch: pa.RecordBatch) -> pa.BooleanArray:
        every = pa.repeat(True, batch.num_rows)
        return reduce(pc.and_kleene, (part.mask(batch) for part in self.parts), every)

    def columns(self) -> Iterator[str]:
        for part in self.parts:
            yield from part.columns()


@dataclass(frozen=True)
class AnyOf:
    """At least one part holds."""

    parts: tuple[Condition, ...]

    def mask(self, batch: pa.RecordBatch) -> pa.BooleanArray:
        return reduce(pc.or_kleene, (part.mask(batch) for part in self.parts))

    def columns(self) -> Iterator[str]:
        for part in self.parts:
            yield from part.columns()
