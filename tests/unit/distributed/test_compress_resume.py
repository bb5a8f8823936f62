"""What is kept of an unfinished job, and what is made again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from clara_dist.distributed.actor_pool import map_serially
from clara_dist.distributed.compress_resume import finished_shards
from clara_dist.errors import CorruptStoreError
from clara_dist.store import StoreSchema, commit, shard_names
from tiny_stores import FINGERPRINT, random_memory, write_rows

SCHEMA = StoreSchema(2, 8)


def kept(store: Path, names: list[str]) -> dict[str, Any]:
    return finished_shards(str(store), SCHEMA, names, map_serially)


def damage(store: Path, name: str) -> None:
    path = store / f"shards/{name}.arrow"
    path.write_bytes(path.read_bytes()[:-40])


def test_whole_shards_of_this_job_are_kept_and_damaged_ones_removed(tmp_path: Path) -> None:
    infos = {name: write_rows(tmp_path, name, random_memory(3), first=i) for i, name in enumerate("abcx")}
    damage(tmp_path, "b")
    damage(tmp_path, "x")
    (tmp_path / "shards/.d.arrow.0.tmp").write_bytes(b"ARROW1")
    assert kept(tmp_path, ["c", "a", "b", "d"]) == {"a": infos["a"], "c": infos["c"]}
    assert shard_names(tmp_path) == ["a", "c", "x"], "x belongs to somebody else"
    write_rows(tmp_path, "b", random_memory(3), first=1)
    assert kept(tmp_path, ["b"]) == {"b": infos["b"]}


def test_a_shard_of_another_model_is_not_kept(tmp_path: Path) -> None:
    write_rows(tmp_path, "a", random_memory(3, m=2, d=4))
    assert kept(tmp_path, ["a"]) == {}
    assert shard_names(tmp_path) == []


def test_damage_of_a_version_is_told_and_nothing_is_removed(tmp_path: Path) -> None:
    commit(tmp_path, SCHEMA, FINGERPRINT, [write_rows(tmp_path, "a", random_memory(3))])
    write_rows(tmp_path, "b", random_memory(3), first=3)
    damage(tmp_path, "a")
    damage(tmp_path, "b")
    with pytest.raises(CorruptStoreError, match=r"version 1 .* is damaged(.|\n)*shards/a\.arrow"):
        kept(tmp_path, ["a", "b"])
    assert shard_names(tmp_path) == ["a", "b"]


def test_a_new_store_needs_no_inspection(tmp_path: Path) -> None:
    def nothing(worker: Any, arguments: Mapping[str, Any], tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        assert not tasks
        return iter(())

    assert finished_shards(str(tmp_path / "new"), SCHEMA, ["a"], nothing) == {}
