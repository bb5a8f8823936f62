"""The columns of a memory store, and how rows become them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from clara_dist.errors import StoreError
from clara_dist.store.passages import check_passages

# Types of metadata columns: the Arrow type, and the Python types that it takes.
_METADATA_TYPES: dict[str, tuple[pa.DataType, tuple[type, ...]]] = {
    "string": (pa.string(), (str,)),
    "int64": (pa.int64(), (int,)),
    "float64": (pa.float64(), (float, int)),
    "bool": (pa.bool_(), (bool,)),
}
_METADATA_PREFIX = "metadata."
# Rows that are checked or measured at a time: keeps the copies in between small whatever the shard's size.
_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True)
class StoreSchema:
    """Shape of one store's rows.

    Attributes:
        n_memory_tokens: M, memory tokens per document.
        hidden_size: D, size of a memory token.
        metadata_columns: Metadata keys that get a typed column of their own, for filters: key -> ``string``, ``int64``,
            ``float64`` or ``bool``. The column is named ``metadata.KEY``; all metadata is in the JSON column anyway.

    Raises:
        StoreError: M or D is not positive, or a column's type is unknown.
    """

    n_memory_tokens: int
    hidden_size: int
    metadata_columns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.n_memory_tokens < 1 or self.hidden_size < 1:
            raise StoreError(
                "a memory needs at least one token of one value", got=f"M {self.n_memory_tokens}, D {self.hidden_size}"
            )
        for name, kind in self.metadata_columns.items():
            if kind not in _METADATA_TYPES:
                raise StoreError(
                    f"metadata column {name!r} has an unknown type", got=kind, expected=", ".join(_METADATA_TYPES)
                )

    @property
    def memory_type(self) -> pa.FixedShapeTensorType:
        return pa.fixed_shape_tensor(pa.float16(), [self.n_memory_tokens, self.hidden_size])

    def arrow_schema(self) -> pa.Schema:
        """The Arrow schema of every shard; no column but the typed metadata ones may hold nulls."""
        columns = [
            pa.field("doc_id", pa.string(), nullable=False),
            pa.field("parent_id", pa.string(), nullable=False),
            pa.field("title", pa.string(), nullable=False),
            pa.field("text", pa.large_string(), nullable=False),
            pa.field("metadata", pa.string(), nullable=False),
            pa.field("memory", self.memory_type, nullable=False),
            pa.field("n_tokens", pa.int32(), nullable=False),
            pa.field("truncated", pa.bool_(), nullable=False),
            pa.field("norm", pa.float32(), nullable=False),
        ]
        columns += [
            pa.field(metadata_column(name), metadata_type(kind)) for name, kind in self.metadata_columns.items()
        ]
        return pa.schema(columns)

    def to_table(
        self,
        *,
        doc_ids: Sequence[str],
        titles: Sequence[str],
        texts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
        memory_SMD: np.ndarray | None,
        n_tokens: Sequence[int] | np.ndarray,
        truncated: Sequence[bool] | np.ndarray,
        parent_ids: Sequence[str] | None = None,
    ) -> pa.Table:
        """Rows of one shard, checked.

        Args:
            doc_ids: Not empty, unique.
            titles: May be empty strings.
            texts: The documents' texts.
            metadata: JSON-able mappings; their order of keys does not matter.
            memory_SMD: Memories, float16 or float32; float16 is stored as it is, without a copy. None leaves room for
                them, see `ShardDraft`.
            n_tokens: Tokens of each document's encoder input.
            truncated: Whether the document was cut at ``doc_max_tokens``.
            parent_ids: The document that each row is a passage of, its own ``doc_id`` where it is all of it; None: no
                row is a passage. See `store.passages`.

        Raises:
            StoreError: Columns of unequal length, a bad or repeated ``doc_id``, passages out of order, memories of
                another shape, a value that is not finite or does not fit float16 (the message names the document), or
                metadata that is no JSON or not of its column's type.
        """
        expected = (len(doc_ids), self.n_memory_tokens, self.hidden_size)
        if memory_SMD is not None and memory_SMD.shape != expected:
            raise StoreError("memories do not have the store's shape", got=memory_SMD.shape, expected=expected)
        parent_ids = doc_ids if parent_ids is None else parent_ids
        for name, column in (
            ("parent_ids", parent_ids),
            ("titles", titles),
            ("texts", texts),
            ("metadata", metadata),
            ("n_tokens", n_tokens),
            ("truncated", truncated),
        ):
            if len(column) != len(doc_ids):
                raise StoreError(
                    f"column {name} has another length than doc_ids", got=len(column), expected=len(doc_ids)
                )
        _check_doc_ids(doc_ids)
        check_passages(doc_ids, parent_ids)
        # Zeros that nobody wrote take no memory of their own.
        half_SMD = np.zeros(expected, np.float16) if memory_SMD is None else to_float16(memory_SMD, doc_ids)
        norms_S = np.zeros(len(doc_ids), np.float32) if memory_SMD is None else memory_norms(half_SMD)
        storage = pa.FixedSizeListArray.from_arrays(
            pa.array(half_SMD.reshape(-1)), self.n_memory_tokens * self.hidden_size
        )
        columns: list[pa.Array] = [
            _string_array("doc_id", doc_ids, pa.string(), doc_ids),
            _string_array("parent_id", parent_ids, pa.string(), doc_ids),
            _string_array("title", titles, pa.string(), doc_ids),
            _string_array("text", texts, pa.large_string(), doc_ids),
            pa.array([_to_json(entry, doc_id) for entry, doc_id in zip(metadata, doc_ids, strict=True)], pa.string()),
            pa.ExtensionArray.from_storage(self.memory_type, storage),
            pa.array(np.asarray(n_tokens, np.int32)),
            pa.array(np.asarray(truncated, np.bool_)),
            pa.array(norms_S),
        ]
        columns += [_metadata_array(name, kind, metadata, doc_ids) for name, kind in self.metadata_columns.items()]
        return pa.Table.from_arrays(columns, schema=self.arrow_schema())


def metadata_column(name: str) -> str:
    """Arrow column of metadata key ``name``; the prefix keeps it apart from the store's own columns."""
    return _METADATA_PREFIX + name


def metadata_type(kind: str) -> pa.DataType:
    """Arrow type of a metadata column of type ``kind``."""
    return _METADATA_TYPES[kind][0]


def is_metadata_value(value: Any, kind: str) -> bool:
    """Whether ``value`` may stand in a metadata column of type ``kind`` (a bool is no number here)."""
    if isinstance(value, bool):
        return kind == "bool"
    if kind == "int64":
        return isinstance(value, int) and -(2**63) <= value < 2**63
    return isinstance(value, _METADATA_TYPES[kind][1])


def to_float16(memory_SMD: np.ndarray, doc_ids: Sequence[str]) -> np.ndarray:
    """Memories as the store keeps them, C-contiguous; no copy if they already are.

    Raises:
        StoreError: A value is NaN, infinite or above 65504 in magnitude; the message names the first such document.
    """
    with np.errstate(over="ignore"):
        half_SMD = np.ascontiguousarray(memory_SMD, np.float16)
    require_float16_range(half_SMD, memory_SMD, doc_ids)
    return half_SMD


def require_float16_range(
    half_SMD: np.ndarray, memory_SMD: np.ndarray, doc_ids: Sequence[str] | pa.ChunkedArray
) -> None:
    """Refuse memories that left float16's range; ``memory_SMD`` has the values before the conversion.

    Raises:
        StoreError: See `to_float16`.
    """
    bad_S = nonfinite_rows(half_SMD)
    if bad_S.any():
        row = int(bad_S.argmax())
        values = np.asarray(memory_SMD[row], np.float32)
        worst = values.flat[int(np.argmax(np.where(np.isnan(values), np.inf, np.abs(values))))]
        raise StoreError(
            f"the memory of document {str(doc_ids[row])!r} does not fit float16",
            got=f"{worst} ({int(bad_S.sum())} of {len(doc_ids)} documents are out of range)",
            expected="finite values of magnitude <= 65504",
            hint="check the compressor: trained hidden states stay far below this",
        )


def nonfinite_rows(memory_SMD: np.ndarray) -> np.ndarray:
    """Which float16 memories hold a NaN or an infinity, bool ``[S]``."""
    exponent = np.uint16(0x7C00)
    bits_SMD = memory_SMD.view(np.uint16)
    bad_S = np.empty(len(memory_SMD), np.bool_)
    for rows in _row_blocks(memory_SMD):
        # All exponent bits set means NaN or infinity; several times faster than np.isfinite on float16.
        bad_S[rows] = ((bits_SMD[rows] & exponent) == exponent).any(axis=(1, 2))
    return bad_S


def memory_norms(memory_SMD: np.ndarray) -> np.ndarray:
    """Euclidean norms of the flattened memories, float32 ``[S]``, summed in float64."""
    rows_SX = memory_SMD.reshape(-1, math.prod(memory_SMD.shape[1:]))
    norms_S = np.empty(len(rows_SX), np.float32)
    for rows in _row_blocks(memory_SMD):
        wide = rows_SX[rows].astype(np.float64)
        norms_S[rows] = np.sqrt(np.einsum("sx,sx->s", wide, wide))
    return norms_S


def _row_blocks(memory_SMD: np.ndarray) -> Iterator[slice]:
    block = max(1, _BLOCK_BYTES // (8 * math.prod(memory_SMD.shape[1:])))
    return (slice(start, start + block) for start in range(0, len(memory_SMD), block))


def _check_doc_ids(doc_ids: Sequence[str]) -> None:
    seen: set[str] = set()
    for row, doc_id in enumerate(doc_ids):
        if not isinstance(doc_id, str) or not doc_id:
            raise StoreError(f"row {row} has no doc_id", got=repr(doc_id), expected="a string that is not empty")
        if doc_id in seen:
            raise StoreError(f"document {doc_id!r} comes twice in one shard", hint="doc_ids must be unique in a store")
        seen.add(doc_id)


def _string_array(name: str, values: Sequence[str], kind: pa.DataType, doc_ids: Sequence[str]) -> pa.Array:
    for value, doc_id in zip(values, doc_ids, strict=True):
        if not isinstance(value, str):
            raise StoreError(f"the {name} of document {doc_id!r} is no string", got=type(value).__name__)
    try:
        return pa.array(values, kind)
    except UnicodeEncodeError as error:
        # A lone surrogate is legal in a Python string and in JSON's escapes, but it has no UTF-8.
        raise StoreError(f"a {name} cannot be written as UTF-8", got=f"{error.object!r:.200}") from error


def _to_json(entry: Mapping[str, Any], doc_id: str) -> str:
    try:
        return json.dumps(dict(entry), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StoreError(f"the metadata of document {doc_id!r} cannot be written as JSON", got=error) from error


def _metadata_array(name: str, kind: str, metadata: Sequence[Mapping[str, Any]], doc_ids: Sequence[str]) -> pa.Array:
    values = [entry.get(name) for entry in metadata]
    for value, doc_id in zip(values, doc_ids, strict=True):
        if value is not None and not is_metadata_value(value, kind):
            raise StoreError(
                f"metadata {name!r} of document {doc_id!r} is not of its column's type", got=repr(value), expected=kind
            )
    try:
        return pa.array(values, metadata_type(kind))
    except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
        raise StoreError(f"metadata {name!r} does not fit its column", got=error, expected=kind) from error
