from __future__ import annotations

import json
from pathlib import Path

import pytest

from clara_dist.distributed.paths import absolute, absolute_base, absolute_output
from clara_dist.errors import ConfigError, StoreError


def test_local_paths_start_at_the_root_and_urls_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("a/../b") == str(tmp_path / "b")
    assert absolute("s3://bucket/a") == "s3://bucket/a"
    assert absolute("file:///a/b%20c") == "/a/b c"
    with pytest.raises(StoreError, match="s3://bucket/a carries credentials") as raised:
        absolute("s3://KEY:hush@bucket/a")
    assert "hush" not in str(raised.value)


def test_a_job_writes_nothing_into_its_unpacked_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    package.mkdir(parents=True)
    monkeypatch.chdir(package)
    with pytest.raises(ConfigError, match="would be deleted"):
        absolute_output("stores/wiki")
    assert absolute("corpus.jsonl") == str(package / "corpus.jsonl"), "what it reads may be there"
    assert absolute_output(str(tmp_path / "store")) == str(tmp_path / "store")
    assert absolute_output("s3://bucket/store") == "s3://bucket/store"


def test_a_base_is_where_the_configuration_or_else_the_model_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "model").mkdir()
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps({"base_model": "base"}), encoding="utf-8")
    assert absolute_base("model", None) == str(tmp_path / "base")
    assert absolute_base("model", "other") == str(tmp_path / "other")
    assert absolute_base("model", "hub/id") == "hub/id"
    config.write_text(json.dumps({"base_model": "hub/id"}), encoding="utf-8")
    assert absolute_base("model", None) is None


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_a_model_that_cannot_be_read_is_left_to_its_worker(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content, encoding="utf-8")
    assert absolute_base(str(tmp_path), None) is None
