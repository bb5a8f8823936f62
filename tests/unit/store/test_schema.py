from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clara_dist.errors import StoreError
from clara_dist.store import StoreSchema
from clara_dist.store.schema import memory_norms, nonfinite_rows

SCHEMA = StoreSchema(2, 4, {"split": "string", "year": "int64", "score": "float64", "live": "bool"})


def rows(**changes: Any) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "doc_ids": ["a", "b"],
        "titles": ["", "B"],
        "texts": ["x", "y"],
        "metadata": [{"split": "train", "year": 2020, "score": 1, "live": True}, {"other": [1, {"z": None}]}],
        "memory_SMD": np.arange(16, dtype=np.float16).reshape(2, 2, 4),
        "n_tokens": [5, 6],
        "truncated": [False, True],
    }
    return {**columns, **changes}


def test_the_table_has_the_documented_columns_and_values():
    table = SCHEMA.to_table(**rows())
    assert table.schema.names == [
        *("doc_id", "parent_id", "title", "text", "metadata", "memory", "n_tokens", "truncated", "norm"),
        *("metadata.split", "metadata.year", "metadata.score", "metadata.live"),
    ]
    assert table.schema.field("memory").type == pa.fixed_shape_tensor(pa.float16(), [2, 4])
    assert table.schema.field("text").type == pa.large_string()
    assert table["memory"].combine_chunks().to_numpy_ndarray().tolist() == rows()["memory_SMD"].tolist()
    assert table["n_tokens"].to_pylist() == [5, 6]
    assert table["truncated"].to_pylist() == [False, True]
    assert table["metadata.split"].to_pylist() == ["train", None]
    assert table["metadata.year"].to_pylist() == [2020, None]
    assert table["metadata.score"].to_pylist() == [1.0, None]
    assert table["metadata.live"].to_pylist() == [True, None]
    assert [json.loads(text) for text in table["metadata"].to_pylist()] == rows()["metadata"]
    expected = [np.sqrt(np.sum(np.arange(8.0) ** 2)), np.sqrt(np.sum(np.arange(8.0, 16.0) ** 2))]
    assert table["norm"].to_pylist() == np.array(expected, np.float32).tolist()


def test_float16_memories_are_not_copied():
    memory = np.arange(16, dtype=np.float16).reshape(2, 2, 4)
    table = SCHEMA.to_table(**rows(memory_SMD=memory))
    assert table["memory"].chunk(0).to_numpy_ndarray().ctypes.data == memory.ctypes.data


@pytest.mark.parametrize("value", [65520.0, -70000.0, np.inf, np.nan])
def test_a_memory_out_of_float16_range_names_its_document(value: float):
    memory = np.zeros((2, 2, 4), np.float32)
    memory[1, 1, 3] = value
    with pytest.raises(StoreError, match=r"'b'.*does not fit float16"):
        SCHEMA.to_table(**rows(memory_SMD=memory))


def test_the_largest_float16_and_every_bfloat16_in_range_are_exact():
    # bfloat16 has 8 significant bits, so from 2^-14 (the smallest normal float16) up to 65504 float16 holds it exactly.
    powers = np.exp2(np.arange(-14, 16))[:, None] * (1 + np.arange(128) / 128)[None]
    memory = np.concatenate([powers.reshape(-1), [65504.0, -65504.0]]).astype(np.float32)
    memory = np.resize(memory, (481, 2, 4))
    schema = StoreSchema(2, 4)
    n = len(memory)
    table = schema.to_table(
        doc_ids=[str(i) for i in range(n)],
        titles=[""] * n,
        texts=[""] * n,
        metadata=[{}] * n,
        memory_SMD=memory,
        n_tokens=[1] * n,
        truncated=[False] * n,
    )
    assert np.array_equal(table["memory"].chunk(0).to_numpy_ndarray().astype(np.float32), memory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"doc_ids": ["a", "a"]}, "'a' comes twice"),
        ({"doc_ids": ["a", ""]}, "row 1 has no doc_id"),
        ({"doc_ids": ["a", None]}, "row 1 has no doc_id"),
        ({"doc_ids": ["a", "\ud800"]}, "doc_id cannot be written as UTF-8"),
        ({"texts": ["x", "\udfff"]}, "text cannot be written as UTF-8"),
        ({"texts": ["x", None]}, "text of document 'b' is no string"),
        ({"titles": ["x"]}, "column titles has another length"),
        ({"memory_SMD": np.zeros((2, 4, 2), np.float16)}, "shape"),
        ({"metadata": [{"year": "2020"}, {}]}, "'year' of document 'a'"),
        ({"metadata": [{}, {"year": True}]}, "'year' of document 'b'"),
        ({"metadata": [{"year": 2**63}, {}]}, "'year' of document 'a' is not of its column's type"),
        ({"metadata": [{}, {"x": object()}]}, "metadata of document 'b' cannot be written as JSON"),
        ({"metadata": [{}, {"x": float("nan")}]}, "metadata of document 'b' cannot be written as JSON"),
    ],
)
def test_bad_rows_are_refused_by_name(changes: dict[str, Any], message: str):
    with pytest.raises(StoreError, match=message):
        SCHEMA.to_table(**rows(**changes))


@pytest.mark.parametrize("arguments", [(0, 4), (2, 0), (2, 4, {"x": "date"})])
def test_bad_schemas_are_refused(arguments: tuple[Any, ...]):
    with pytest.raises(StoreError):
        StoreSchema(*arguments)


def test_norms_are_float64_sums_and_blocks_do_not_show():
    memory = np.random.default_rng(0).standard_normal((300, 16, 512)).astype(np.float16)
    # 300 rows of 64 KiB in float64 make more than two of the blocks that the norms are computed in.
    expected = np.sqrt((memory.astype(np.float64) ** 2).sum((1, 2)))
    assert np.allclose(memory_norms(memory), expected, rtol=6e-8, atol=0)


def test_nonfinite_rows_finds_every_kind_and_no_large_value():
    memory = np.full((5, 1, 2), 65504, np.float16)
    memory[1, 0, 1], memory[2, 0, 0], memory[3, 0, 1] = np.nan, np.inf, -np.inf
    assert nonfinite_rows(memory).tolist() == [False, True, True, True, False]
