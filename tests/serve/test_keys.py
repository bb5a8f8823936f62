"""API keys of a file: several, changed while the server runs, never lost by an accident."""

from __future__ import annotations

from pathlib import Path

import pytest

from clara_dist.config.serve import ServeConfig
from clara_dist.distributed.serve_guard import ApiKeys
from clara_dist.errors import ConfigError


def accepted(keys: ApiKeys, *candidates: str) -> list[bool]:
    return [keys.accept(f"Bearer {candidate}") for candidate in candidates]


def test_keys_of_a_file_and_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("# application A\nfirst\n\n  second \n")
    monkeypatch.setenv("CLARA_API_KEY", "third, fourth")
    keys = ApiKeys.of(ServeConfig(model="m", store="s", host="0.0.0.0", api_key_file=str(file)))
    assert accepted(keys, "first", "second", "third", "fourth") == [True] * 4
    assert accepted(keys, "", "# application A", "application A", "fifth", "first second") == [False] * 5


def test_a_changed_file_is_noticed_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("old")
    keys = ApiKeys("", file)
    assert accepted(keys, "old", "new") == [True, False]
    (tmp_path / "next").write_text("new\nnewer")
    (tmp_path / "next").rename(file)
    assert accepted(keys, "old", "new", "newer") == [False, True, True]
    for breakage in (lambda: file.write_text("# none\n"), lambda: file.write_bytes(b"\xff"), file.unlink):
        breakage()
        assert keys
        assert accepted(keys, "old", "new", "") == [False, True, False]
    file.write_text("last")
    assert accepted(keys, "new", "last") == [False, True]


def test_a_file_that_is_no_good_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    for name, message in (("nowhere", "cannot be read"), ("empty", "has none")):
        with pytest.raises(ConfigError, match=message):
            ApiKeys("", tmp_path / name)
