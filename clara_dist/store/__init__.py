"""The memory store: immutable Arrow shards, atomic manifests, memory-mapped reads (pyarrow and numpy only)."""

from clara_dist.store.fingerprint import Fingerprint
from clara_dist.store.manifest import Manifest, ShardInfo
from clara_dist.store.reader import MemoryStore, StoredDocument
from clara_dist.store.schema import StoreSchema
from clara_dist.store.shard import Shard
from clara_dist.store.verify import Problem, StoreInfo, VerifyReport, info, verify
from clara_dist.store.writer import commit, describe_shard, shard_names, write_shard

__all__ = [
    "Fingerprint",
    "Manifest",
    "MemoryStore",
    "Problem",
    "Shard",
    "ShardInfo",
    "StoreInfo",
    "StoreSchema",
    "StoredDocument",
    "VerifyReport",
    "commit",
    "describe_shard",
    "info",
    "shard_names",
    "verify",
    "write_shard",
]
