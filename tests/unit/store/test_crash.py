"""Every operation on a store is killed at every one of its steps: what is left is the old version or the new one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clara_dist.errors import StoreError
from clara_dist.store import (
    MemoryStore,
    StoreSchema,
    append_shards,
    append_store,
    collect,
    commit,
    compact,
    delete,
    export_parquet,
    import_parquet,
    info,
    restore,
    verify,
    write_shard,
)
from clara_dist.store.storage import LocalStorage, Storage
from faulty_storage import FaultyStorage, Killed
from tiny_stores import FINGERPRINT, build_store, random_memory, write_rows

SCHEMA = StoreSchema(2, 8)
MEMORY = random_memory(16)


def table(first: int, stop: int):
    n = stop - first
    return SCHEMA.to_table(
        doc_ids=[f"doc-{i}" for i in range(first, stop)], titles=[""] * n, texts=["t"] * n, metadata=[{}] * n,
        memory_SMD=MEMORY[first:stop], n_tokens=[1] * n, truncated=[False] * n,
    )  # fmt: skip


def do_commit(storage: Storage, other: Path) -> None:
    head = info(storage)
    shard = write_shard(storage, table(8, 12), "new")
    if shard not in head.manifest.shards:
        commit(storage, SCHEMA, FINGERPRINT, [*head.manifest.shards, shard], parent=head.manifest.version)


def do_append(storage: Storage, other: Path) -> None:
    shards = [write_shard(storage, table(6, 9), "new"), write_shard(storage, table(9, 12), "newer")]
    append_shards(storage, SCHEMA, FINGERPRINT, shards, on_existing="replace")


def do_delete(storage: Storage, other: Path) -> None:
    delete(storage, doc_ids=["doc-0", "doc-7"], missing_ok=True)


def do_collect(storage: Storage, other: Path) -> None:
    # A person who knows that the first collection is dead.
    collect(storage, keep_versions=1, grace_s=0, resume=True)


def do_restore(storage: Storage, other: Path) -> None:
    restore(storage, 1)


OPERATIONS: dict[str, Callable[[Storage, Path], object]] = {
    "commit": do_commit,
    "append": do_append,
    "append-store": lambda storage, other: append_store(storage, other, on_existing="replace"),
    "delete": do_delete,
    "compact": lambda storage, other: compact(storage, target_size_bytes=1 << 20),
    "restore": do_restore,
    "import": lambda storage, other: import_parquet(other.parent / "parquet", storage, on_existing="skip"),
    "collect": do_collect,
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``first`` has three versions (8, 8 + 4 - 1 and 11 - 1 documents) and an orphan; ``other`` has 8 documents."""
    folder = tmp_path_factory.mktemp("stores")
    first = folder / "first"
    build_store(first, MEMORY[:8], [3, 5])
    append_shards(first, SCHEMA, FINGERPRINT, [write_rows(first, "late", MEMORY[12:], first=12)])
    delete(first, doc_ids=["doc-3"])
    write_rows(first, "orphan", MEMORY[:2])
    build_store(folder / "other", MEMORY[5:13], [8])
    append_shards(folder / "source", SCHEMA, FINGERPRINT, [write_shard(folder / "source", table(6, 12), "x")])
    export_parquet(folder / "source", folder / "parquet")
    return folder


def contents(store: Path) -> dict[str, bytes]:
    opened = MemoryStore.open(store)
    rows = np.arange(opened.n_documents)
    return {i: m.tobytes() for i, m in zip(opened.doc_ids(rows), opened.take_memory(rows), strict=True)}


@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_at_any_step_a_store_is_old_or_new_and_the_operation_can_be_repeated(
    name: str, stores: Path, tmp_path: Path
):
    operation = OPERATIONS[name]
    other = stores / "source"
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(stores / "first", undisturbed)
    counter = FaultyStorage(LocalStorage(undisturbed))
    old = contents(undisturbed)
    operation(counter, other)
    new = contents(undisturbed)
    seen = set()
    # To die after one operation is to die before the next, so only the last one is also survived by its effect.
    n = counter.n_operations
    for last, done in [*((last, False) for last in range(n)), (n - 1, True)]:
        store = tmp_path / f"{last}-{done}"
        shutil.copytree(stores / "first", store)
        with pytest.raises(Killed):
            operation(FaultyStorage(LocalStorage(store), last, done=done), other)
        found = contents(store)
        assert found in (old, new), (last, done)
        assert verify(store).ok, (last, done)
        seen.add(found == new)
        operation(LocalStorage(store), other)
        assert contents(store) == new, (last, done)
        shutil.rmtree(store)
    assert counter.n_operations >= 6
    if old != new:
        assert seen == {False, True}


@pytest.mark.parametrize("name", ["append", "collect"])
def test_killed_inside_a_publication_a_store_is_old_or_new(name: str, stores: Path, tmp_path: Path):
    """As above, by the system calls of the local storage, and with a process that really ends."""
    operation = OPERATIONS[name]
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(stores / "first", undisturbed)
    old = contents(undisturbed)
    operation(LocalStorage(undisturbed), stores / "source")
    new = contents(undisturbed)
    outcomes = []
    for last in range(1000):
        store = tmp_path / f"{last}"
        shutil.copytree(stores / "first", store)
        status = in_a_child_that_ends_at(last, lambda store=store: operation(LocalStorage(store), stores / "source"))
        found = contents(store)
        assert found in (old, new), last
        outcomes.append(found == new)
        operation(LocalStorage(store), stores / "source")
        assert contents(store) == new, last
        shutil.rmtree(store)
        if status == 0:
            break
    assert len(outcomes) > 8
    assert outcomes[-1]


def in_a_child_that_ends_at(last: int, operation: Callable[[], object]) -> int:
    """Run in a fork that ends without any clean-up at its ``last``-th system call that changes a file."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        count = 0

        def ending(call: Callable[..., object]) -> Callable[..., object]:
            def wrapped(*arguments: object, **options: object) -> object:
                nonlocal count
                if count == last:
                    os._exit(9)
                count += 1
                return call(*arguments, **options)

            return wrapped

        for name in ("fsync", "link", "replace", "unlink"):
            setattr(os, name, ending(getattr(os, name)))
        operation()
        os._exit(0)
    except BaseException:
        os._exit(1)


def test_a_collection_that_was_killed_is_finished_only_when_somebody_says_so(stores: Path, tmp_path: Path):
    store = tmp_path / "store"
    shutil.copytree(stores / "first", store)
    with pytest.raises(Killed):
        collect(FaultyStorage(LocalStorage(store), before=lambda _, name: die_if(name == "delete")), grace_s=0)
    assert MemoryStore.open(store).manifest.collecting == ("shards/orphan.arrow",)
    with pytest.raises(StoreError, match="is running, or was killed"):
        collect(store, grace_s=0)
    orphan = write_rows(store, "orphan", MEMORY[:2])
    with pytest.raises(StoreError, match=r"is deleting the file shards/orphan\.arrow"):
        append_shards(store, SCHEMA, FINGERPRINT, [orphan], on_existing="replace")
    delete(store, doc_ids=["doc-1"])  # other changes go on, and keep the promise
    assert MemoryStore.open(store).manifest.collecting == ("shards/orphan.arrow",)
    assert collect(store, grace_s=0, resume=True).manifest.collecting == ()
    assert not (store / "shards/orphan.arrow").exists()
    orphan = write_rows(store, "orphan", MEMORY[:2])
    append_shards(store, SCHEMA, FINGERPRINT, [orphan], on_existing="replace")
    assert verify(store).ok


def die_if(condition: bool) -> None:
    if condition:
        raise Killed
