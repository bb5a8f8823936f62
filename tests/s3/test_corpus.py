"""Corpora in a bucket give the documents, the units and the fingerprint of the same files on a disk."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clara_dist.config.compress import CompressConfig
from clara_dist.data.corpus import corpus_fingerprint, plan_units, read_unit
from clara_dist.data.documents import Reject
from clara_dist.distributed.actor_pool import map_serially
from clara_dist.distributed.compress_survey import survey_corpus
from clara_dist.errors import DataError
from clara_dist.store import files

LINES = "".join(json.dumps({"id": f"d{i}", "text": f"text {i} " + "x" * 100}) + "\n" for i in range(100)).encode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    table = pa.table({"id": [f"p{i}" for i in range(50)], "text": [f"text {i}" for i in range(50)]})
    pq.write_table(table, tmp_path / "p.parquet", row_group_size=20)
    contents = {
        "lines/a.jsonl": LINES + b"broken\n",
        "lines/deep/b.jsonl.gz": gzip.compress(LINES),
        "lines/deep/c.jsonl.zst": pa.compress(LINES, codec="zstd", asbytes=True),
        "beir/corpus.jsonl": LINES,
        "beir/queries.jsonl": LINES,
        "texts/1.txt": b"one",
        "texts/deep/2.md": b"two",
        "texts/3.txt": b"\xff",
        "texts/.hidden.txt": b"no",
    }
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize(
    "names",
    [
        ["lines/a.jsonl"],
        ["lines/deep/b.jsonl.gz", "lines/deep/c.jsonl.zst"],
        ["p.parquet"],
        ["lines"],
        ["lines/**/*.jsonl*"],
        ["beir"],
        ["texts"],
        ["texts/**/*.txt"],
        ["texts/1.txt", "p.parquet", "lines/*.jsonl"],
    ],
)
def test_a_bucket_is_read_as_a_disk_is(folder: Path, s3_url: Callable[[str], str], names: list[str]) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            files.write(s3_url(str(path.relative_to(folder))), path.read_bytes())
    here = plan_units([folder / name for name in names], rows_per_unit=30)
    there = plan_units([s3_url(name) for name in names], rows_per_unit=30)
    assert corpus_fingerprint(there) == corpus_fingerprint(here)

    def read(units: Any) -> list[Any]:
        items = [item for unit in units for item in read_unit(unit)]
        return [(item.line, item.reason, item.doc_id) if isinstance(item, Reject) else item for item in items]

    assert read(there) == read(here)
    assert len(read(there)) >= 2


def test_what_is_not_in_the_bucket_is_told(s3_url: Callable[[str], str]) -> None:
    files.write(s3_url("c/a.jsonl"), LINES)
    with pytest.raises(DataError, match="there is no file s3://"):
        plan_units(s3_url("c/b.jsonl"))
    with pytest.raises(DataError, match="no file matches s3://"):
        plan_units(s3_url("c/*.parquet"))


def test_rejects_are_listed_in_the_bucket(folder: Path, s3_url: Callable[[str], str]) -> None:
    corpus = s3_url("c/a.jsonl")
    files.write(corpus, LINES + b"broken\n")
    config = CompressConfig(corpus=(corpus,), model="m", store=s3_url("stores/a"), max_rejects=1)
    found = survey_corpus(config, plan_units(corpus, rows_per_unit=30), map_serially)
    assert (found.n_documents, found.n_rejected) == (100, 1)
    with files.open_input(config.rejects_path) as stream:
        (row,) = map(json.loads, stream)
    assert (row["path"], row["line"]) == (corpus, 101)
