"""The memory store: immutable Arrow shards, atomic manifests, memory-mapped reads (pyarrow and numpy only)."""

from clara_dist.store.append import append_shards, append_store
from clara_dist.store.collect import CollectReport, collect
from clara_dist.store.compact import compact
from clara_dist.store.delete import DeleteReport, delete, restore
from clara_dist.store.diff import DiffReport, diff
from clara_dist.store.export import export_parquet, import_parquet
from clara_dist.store.fingerprint import Fingerprint
from clara_dist.store.manifest import Manifest, ShardInfo
from clara_dist.store.reader import MemoryStore, StoredDocument
from clara_dist.store.schema import StoreSchema
from clara_dist.store.shard import Shard
from clara_dist.store.verify import Problem, StoreInfo, VerifyReport, history, info, verify
from clara_dist.store.where import Filter, Where, parse_where
from clara_dist.store.writer import commit, describe_shard, shard_names, write_shard

__all__ = [
    "CollectReport",
    "DeleteReport",
    "DiffReport",
    "Filter",
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
    "Where",
    "append_shards",
    "append_store",
    "collect",
    "commit",
    "compact",
    "delete",
    "describe_shard",
    "diff",
    "export_parquet",
    "history",
    "import_parquet",
    "info",
    "parse_where",
    "restore",
    "shard_names",
    "verify",
    "write_shard",
]
