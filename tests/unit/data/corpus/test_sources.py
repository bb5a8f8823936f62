"""What the user names: files, patterns, directories, folders of texts."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clara_dist.data.corpus import CorpusUnit, corpus_fingerprint, plan_units, read_unit
from clara_dist.data.documents import Document, Reject
from clara_dist.errors import DataError


def read_all(units: list[CorpusUnit]) -> list[Document | Reject]:
    return [item for unit in units for item in read_unit(unit)]


def ids(corpus: Any, **options: Any) -> list[str | None]:
    return [item.doc_id for item in read_all(plan_units(corpus, **options))]


def write(folder: Path, contents: dict[str, str | bytes]) -> Path:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


TEXTS: dict[str, str | bytes] = {
    "b.txt": "second",
    "a/deep/One page.md": "\ufefffirst\nof two lines",
    "a/.hidden.txt": "x",
    ".git/notes.txt": "x",
    "c.rst": "x",
}


@pytest.mark.parametrize("rows_per_unit", [1, 2, 10])
def test_a_folder_of_texts_is_a_document_a_file(tmp_path: Path, rows_per_unit: int) -> None:
    folder = write(tmp_path / "docs", TEXTS)
    units = plan_units(folder, rows_per_unit=rows_per_unit)
    assert len(units) == -(-2 // rows_per_unit)
    assert read_all(units) == [
        Document("a/deep/One page.md", "One page", "first\nof two lines"),
        Document("b.txt", "b", "second"),
    ]


def test_text_files_by_name_and_pattern_are_named_from_there_on(tmp_path: Path) -> None:
    folder = write(tmp_path / "docs", TEXTS)
    assert ids(str(folder / "**" / "*.md")) == ["a/deep/One page.md"]
    assert ids(str(folder / "*" / "**" / "*.md")) == ["a/deep/One page.md"]
    assert ids(folder / "b.txt") == ["b.txt"]
    assert ids(folder / "c.rst", format="text") == ["c.rst"]
    assert ids([folder / "b.txt", folder]) == ["b.txt", "a/deep/One page.md"]  # a file named twice is read once
    with pytest.raises(DataError, match=r"no file matches .*\*\.txt"):
        plan_units(str(folder / ".git" / "x*.txt"))


def test_a_text_that_is_none_is_rejected_with_its_file(tmp_path: Path) -> None:
    folder = write(
        tmp_path, {"1.txt": b"ok\nnot \xff", "2.txt": " \n", "3.txt": "good", "4.txt": "x" * 101, "5.txt": "a\0b"}
    )
    rejects = read_all(plan_units(folder, max_line_bytes=100, rows_per_unit=3))
    assert rejects.pop(2) == Document("3.txt", "3", "good")
    assert [(r.path, r.line, r.doc_id, r.reason) for r in rejects if isinstance(r, Reject)] == [
        (str(folder / "1.txt"), 1, "1.txt", "invalid UTF-8 (byte 0xff in line 2)"),
        (str(folder / "2.txt"), 1, "2.txt", "text is only white space"),
        (str(folder / "4.txt"), 1, "4.txt", "the file is too long (above max_line_bytes)"),
        (str(folder / "5.txt"), 1, "5.txt", "text contains a NUL character"),
    ]


def test_a_text_that_changes_under_the_job_is_noticed(tmp_path: Path) -> None:
    units = plan_units(write(tmp_path, {"1.txt": "one", "2.txt": "two"}))
    assert corpus_fingerprint(plan_units(tmp_path)) == corpus_fingerprint(units)
    # The bytes of both together are the same as before.
    write(tmp_path, {"1.txt": "onet", "2.txt": "wo"})
    assert corpus_fingerprint(plan_units(tmp_path)) != corpus_fingerprint(units)
    with pytest.raises(DataError, match="was changed while it was being read"):
        read_all(units)
    (tmp_path / "2.txt").unlink()
    with pytest.raises(DataError, match=r"there is no file .*2\.txt"):
        read_all(units)


def test_a_directory_gives_its_files_of_data_and_not_its_texts(tmp_path: Path) -> None:
    row = '{"id": "%s", "text": "t"}\n'
    write(tmp_path, {"README.md": "about", "b.jsonl": row % "b", "sub/a.jsonl.gz": gzip.compress((row % "a").encode())})
    write(
        tmp_path,
        {"dataset_infos.json": "{}", "z.jsonl.zst": pa.compress((row % "z").encode(), codec="zstd", asbytes=True)},
    )
    pq.write_table(pa.table({"id": ["p"], "text": ["t"]}), tmp_path / "c.parquet")
    assert ids(tmp_path) == ["b", "p", "a", "z"]
    assert ids(tmp_path, format="parquet") == ["p"]
    assert ids(tmp_path, format="jsonl") == ["b", "a", "z"]
    assert ids(tmp_path, format="text") == ["README.md"]
    with pytest.raises(DataError, match="a directory without a file of the format huggingface"):
        plan_units(tmp_path, format="huggingface")


def test_beir_may_be_zstd(tmp_path: Path) -> None:
    content = b'{"_id": "1", "title": "T", "text": "t", "metadata": {"url": "u"}}\n'
    (tmp_path / "corpus.jsonl.zst").write_bytes(pa.compress(content, codec="zstd", asbytes=True))
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "what?"}\n')
    for wanted in ("auto", "beir"):
        assert read_all(plan_units(tmp_path, format=wanted)) == [Document("1", "T", "t", {"url": "u"})]  # type: ignore[arg-type]


def test_patterns_reach_over_folders_and_formats(tmp_path: Path) -> None:
    row = '{"id": "%s", "text": "t"}\n'
    write(tmp_path, {"x/1/a.jsonl": row % "a", "x/2/3/b.jsonl": row % "b", "x/.tmp/c.jsonl": row % "c", "y.txt": "t"})
    assert ids(str(tmp_path / "**" / "*.jsonl")) == ["a", "b"]
    assert ids(str(tmp_path / "**" / "*.[jt]*")) == ["a", "b", "y.txt"]
