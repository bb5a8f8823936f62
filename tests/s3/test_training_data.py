"""Training data in a bucket, laid out in the run's directory in a bucket."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from clara_dist.config import StageConfig
from clara_dist.data import prepared
from clara_dist.data.examples import Example, read_examples
from clara_dist.data.prepared import open_examples, prepare_examples
from clara_dist.store import files


def test_examples_are_mapped_from_the_cache_of_the_machine(
    s3_url: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "_PART_BYTES", 100)
    rows = [{"question": f"q{i}", "answer": f"a{i}", "doc_ids": ["d1", "d2"], "pos_index": 1} for i in range(9)]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    files.write(s3_url("in/rows.jsonl"), data)
    stage = StageConfig(stage="joint", data=s3_url("in/*.jsonl"), steps=1, store="s")
    seen: list[str] = []

    def prepare() -> list[Example]:
        def observe(place: str, row: object) -> None:
            seen.append(place)

        return list(prepare_examples(stage, s3_url("run/joint/data"), settings={}, observe=observe, report=dict))

    (tmp_path / "rows.jsonl").write_bytes(data)
    expected = read_examples(tmp_path / "rows.jsonl", "joint")
    assert prepare() == expected
    assert prepare() == expected
    assert len(seen) == 9
    assert list(open_examples(s3_url("run/joint/data"))) == expected
    files.write(s3_url("in/rows.jsonl"), data + data)
    assert prepare() == expected + expected
