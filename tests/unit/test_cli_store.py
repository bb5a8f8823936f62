"""The store's commands, one after the other on one small store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clara_dist import cli
from tiny_stores import build_store, random_memory

METADATA = [{"lang": ["fr", "en"][i % 2], "year": 2000 + i, "good": i < 3} for i in range(6)]


@pytest.fixture
def store(tmp_path: Path) -> str:
    columns = {"lang": "string", "year": "int64", "good": "bool"}
    build_store(tmp_path / "store", random_memory(6), [2, 4], metadata=METADATA, metadata_columns=columns)
    return str(tmp_path / "store")


def run(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["store", *args])
    captured = capsys.readouterr()
    assert stopped.value.code == code, captured.err
    return captured.out + captured.err


def test_the_commands_in_a_row(store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "delete", store, "--where", "lang = 'fr' and good = true")
    assert out.splitlines() == ["deleted 2 rows", f"store {store}, version 2: 4 rows in 2 shards"]
    out = run(capsys, "info", store)
    assert "documents      4, as 4 passages in 2 shards" in out
    assert "column         year (int64)" in out
    assert "deleted        2 passages more" in out
    assert json.loads(run(capsys, "info", store, "--version", "1", "--json"))["n_documents"] == 6
    out = run(capsys, "diff", store, "--from", "1", "--ids", code=1)
    assert out.splitlines() == ["0 added, 2 removed, 0 changed, 4 the same", "- doc-0", "- doc-2"]
    copy, parquet = str(tmp_path / "copy"), str(tmp_path / "parquet")
    assert "2 files" in run(capsys, "export", store, parquet, "--version", "1")
    assert "version 1: 6 rows" in run(capsys, "import", parquet, copy)
    assert "4 of the documents" in run(capsys, "append", store, copy, code=1)
    assert "version 3: 6 rows" in run(capsys, "append", store, copy, "--on-existing", "skip")
    assert "version 4: 6 rows in 1 shards" in run(capsys, "compact", store)
    assert json.loads(run(capsys, "diff", store, copy, "--json"))["equal"]
    assert "version 5: 4 rows" in run(capsys, "restore", store, "--version", "2")
    listed = [line.split()[2] for line in run(capsys, "versions", store).splitlines()]
    assert listed == ["compress", "delete", "append", "compact", "restore"]
    assert "versions would be given up: 1, 2, 3, 4" in run(capsys, "gc", store, "--keep-versions", "1", "--dry-run")
    out = run(capsys, "gc", store, "--keep-versions", "1", "--grace-hours", "0")
    assert "deleted: shards/compact-" in out
    assert [v["version"] for v in json.loads(run(capsys, "versions", store, "--json"))] == [5, 6, 7]
    assert json.loads(run(capsys, "verify", store, "--json"))["ok"]


def test_ids_from_a_file_and_wrong_options(store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ids").write_text("doc-1\n\ndoc-9\n")
    assert "'doc-9'" in run(capsys, "delete", store, "--ids-file", str(tmp_path / "ids"), code=1)
    out = run(capsys, "delete", store, "--ids-file", str(tmp_path / "ids"), "--missing-ok")
    assert out.splitlines()[:2] == ["not in the store: doc-9", "deleted 1 rows"]
    assert "at character 6\n" in run(capsys, "delete", store, "--where", "lang=fr", code=1)
    assert "expected: int64" in run(capsys, "delete", store, "--where", "year < 'soon'", code=1)
    assert "no metadata column 'size'" in run(
        capsys, "export", store, str(tmp_path / "pq"), "--where", "size=1", code=1
    )
    assert "either ids or a filter" in run(capsys, "delete", store, code=1)
    assert "error, skip or replace" in run(capsys, "append", store, store, "--on-existing", "maybe", code=2)


def test_the_report_of_an_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_store(tmp_path / "store", random_memory(64), [64])
    report = tmp_path / "index.json"
    flags = ["--factory", "PCA4,SQ8", "--rescored", "64", "--json", str(report)]
    with pytest.raises(SystemExit) as stopped:
        cli.main(["index", "build", str(tmp_path / "store"), *flags])
    said = capsys.readouterr()
    assert stopped.value.code == 0, said.err
    found = json.loads(report.read_text(encoding="utf-8"))
    assert (found["factory"], found["rescored"], found["measured"]["recall"]) == ("PCA4,SQ8", 64, 1.0)
    assert f"read a query   {found['measured']['bytes_per_query']:,} bytes" in said.out
