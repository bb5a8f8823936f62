"""Several writers at once, in real processes: all of what they committed is there, once."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from clara_dist.errors import CommitConflictError, StoreError
from clara_dist.store import (
    MemoryStore,
    StoreSchema,
    append_shards,
    collect,
    compact,
    delete,
    history,
    verify,
)
from clara_dist.store.commits import Content, Snapshot, publish_next, update
from clara_dist.store.storage import LocalStorage
from faulty_storage import FaultyStorage
from tiny_stores import FINGERPRINT, build_store, random_memory, write_rows

SCHEMA = StoreSchema(2, 8)
_ROUNDS = 12
_ROWS = 2


def append_rounds(store: Path, writer: int, start) -> None:
    start.wait()
    for number in range(_ROUNDS):
        first = (writer * _ROUNDS + number) * _ROWS
        shard = write_rows(store, f"w{writer}-{number}", random_memory(_ROWS, seed=first), first=first)
        append_shards(store, SCHEMA, FINGERPRINT, [shard])


def delete_rounds(store: Path, writer: int, start) -> None:
    start.wait()
    for number in range(_ROUNDS):
        delete(store, doc_ids=[f"doc-{10_000 + number}"])


def collect_rounds(store: Path, writer: int, start) -> None:
    start.wait()
    for _ in range(_ROUNDS):
        collect(store, keep_versions=3)


def compact_rounds(store: Path, writer: int, start) -> None:
    start.wait()
    for _ in range(_ROUNDS // 3):
        try:
            compact(store, target_size_bytes=1 << 20)
        except CommitConflictError:
            continue  # told clearly; the next round tries again


def run_together(store: Path, works: list) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(len(works))
    processes = [context.Process(target=work, args=(store, i, start)) for i, work in enumerate(works)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(works)


def expected_ids(n_writers: int, kept: range) -> set[str]:
    numbers = [*range(n_writers * _ROUNDS * _ROWS), *kept]
    return {f"doc-{i}" for i in numbers}


def assert_holds(store: Path, ids: set[str], n_writers: int) -> None:
    opened = MemoryStore.open(store)
    assert sorted(opened.doc_ids(range(opened.n_documents))) == sorted(ids)
    assert verify(store).ok
    for first in range(0, n_writers * _ROUNDS * _ROWS, _ROWS):
        rows = opened.rows_of([f"doc-{i}" for i in range(first, first + _ROWS)])
        np.testing.assert_array_equal(opened.take_memory(rows), random_memory(_ROWS, seed=first))


def test_four_processes_append_and_nothing_is_lost_or_doubled(tmp_path: Path):
    build_store(tmp_path, random_memory(0), [])
    run_together(tmp_path, [append_rounds] * 4)
    assert_holds(tmp_path, expected_ids(4, range(0)), 4)
    versions = history(tmp_path)
    assert [manifest.version for manifest in versions] == list(range(1, 2 + 4 * _ROUNDS))
    assert [manifest.n_documents for manifest in versions] == [_ROWS * i for i in range(1 + 4 * _ROUNDS)]


def test_appending_deleting_compacting_and_collecting_at_once(tmp_path: Path):
    append_shards(
        tmp_path, SCHEMA, FINGERPRINT, [write_rows(tmp_path, "old", random_memory(_ROUNDS + 3), first=10_000)]
    )
    run_together(tmp_path, [append_rounds, append_rounds, delete_rounds, compact_rounds, collect_rounds])
    assert_holds(tmp_path, expected_ids(2, range(10_000 + _ROUNDS, 10_000 + _ROUNDS + 3)), 2)


def test_a_writer_that_is_overtaken_tries_again_on_the_newer_version(tmp_path: Path):
    build_store(tmp_path, random_memory(4))
    rivals = iter(range(3))

    def overtaken(number: int, name: str) -> None:
        # Right before the manifest is published, as often as there are rivals.
        if name == "publish" and (rival := next(rivals, None)) is not None:
            first = 100 + rival
            append_shards(
                tmp_path, SCHEMA, FINGERPRINT, [write_rows(tmp_path, f"r{rival}", random_memory(1), first=first)]
            )

    shard = write_rows(tmp_path, "mine", random_memory(2), first=50)
    manifest = append_shards(FaultyStorage(LocalStorage(tmp_path), before=overtaken), SCHEMA, FINGERPRINT, [shard])
    assert manifest.version == 5
    ids = MemoryStore.open(tmp_path).doc_ids(range(9))
    assert ids == [*(f"doc-{i}" for i in range(4)), "doc-100", "doc-101", "doc-102", "doc-50", "doc-51"]


def test_a_rivals_document_is_seen_when_an_append_tries_again(tmp_path: Path):
    build_store(tmp_path, random_memory(4))
    rivals = iter([write_rows(tmp_path, "rival", random_memory(1, seed=5), first=50)])

    def overtaken(number: int, name: str) -> None:
        if name == "publish" and (rival := next(rivals, None)) is not None:
            append_shards(tmp_path, SCHEMA, FINGERPRINT, [rival])

    shard = write_rows(tmp_path, "mine", random_memory(2), first=50)
    with pytest.raises(StoreError, match="'doc-50'"):
        append_shards(FaultyStorage(LocalStorage(tmp_path), before=overtaken), SCHEMA, FINGERPRINT, [shard])
    assert MemoryStore.open(tmp_path).n_documents == 5


def test_who_always_loses_is_told(tmp_path: Path):
    build_store(tmp_path, random_memory(1))
    storage = LocalStorage(tmp_path)
    calls = 0

    def change(head: Snapshot) -> Content:
        nonlocal calls
        calls += 1
        content = Content(head.manifest.shards)
        publish_next(storage, head, content, SCHEMA, FINGERPRINT, "rival")
        return content

    with pytest.raises(CommitConflictError, match="another writer committed version 101"):
        update(storage, "mine", change)
    assert calls == 100
    assert {manifest.operation for manifest in history(tmp_path)} == {"compress", "rival"}


def test_a_list_of_deletions_that_lost_is_not_left_behind(tmp_path: Path):
    build_store(tmp_path, random_memory(4))
    rivals = iter(["doc-0", "doc-1"])

    def overtaken(number: int, name: str) -> None:
        if name == "publish" and (rival := next(rivals, None)) is not None:
            delete(tmp_path, doc_ids=[rival])

    delete(FaultyStorage(LocalStorage(tmp_path), before=overtaken), doc_ids=["doc-3"])
    assert MemoryStore.open(tmp_path).doc_ids(range(1)) == ["doc-2"]
    listed = {manifest.deletions.file for manifest in history(tmp_path) if manifest.deletions}
    assert {f"deletions/{path.name}" for path in (tmp_path / "deletions").iterdir()} == listed
