"""What earlier jobs left in a store, and what of it a job that goes on can keep."""

from __future__ import annotations

from collections.abc import Sequence

from clara_dist.distributed.actor_pool import Mapper
from clara_dist.errors import CorruptStoreError
from clara_dist.store.manifest import ShardInfo, read_manifest, shard_file, versions
from clara_dist.store.schema import StoreSchema
from clara_dist.store.storage import open_storage
from clara_dist.store.writer import describe_shard, shard_names


class ShardInspector:
    """Describes a finished shard from its bytes; None if it is damaged."""

    def __init__(self, store: str, schema: StoreSchema) -> None:
        self.store = store
        self.schema = schema

    def __call__(self, name: str) -> ShardInfo | None:
        try:
            return describe_shard(self.store, self.schema, name)
        except CorruptStoreError:
            return None


def finished_shards(store: str, schema: StoreSchema, names: Sequence[str], inspect_on: Mapper) -> dict[str, ShardInfo]:
    """Which of a job's shards are in the store already, whole.

    Damaged ones are removed, so that they are made again. That happens here, before any worker writes: a published
    shard is replaced by nobody, and so every description of one stays true.

    Raises:
        CorruptStoreError: A damaged shard belongs to a version of the store.
    """
    there = sorted(set(shard_names(store)).intersection(names))
    found = {
        there[index]: info for index, info in inspect_on(ShardInspector, {"store": store, "schema": schema}, there)
    }
    _remove(store, [name for name in there if found[name] is None])
    return {name: info for name, info in found.items() if info is not None}


def _remove(store: str, damaged: Sequence[str]) -> None:
    if not damaged:
        return
    storage = open_storage(store)
    for version in versions(storage):
        listed = {shard.file for shard in read_manifest(storage, version).shards}
        lost = sorted(listed.intersection(map(shard_file, damaged)))
        if lost:
            raise CorruptStoreError(
                f"version {version} of the store {storage.url} is damaged",
                got=", ".join(lost),
                hint="`clara-dist store verify` lists all damage; restore the files, or write a new store",
            )
    for name in damaged:
        storage.delete(shard_file(name))
