"""Opening a memory store for one model: where the fingerprint is checked on the way to training."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from clara_dist.retrieval.bank import MemoryBank
from clara_dist.retrieval.sharded import ShardedSearcher
from clara_dist.store.fingerprint import Fingerprint
from clara_dist.store.reader import MemoryStore
from clara_dist.store.where import Filter


def open_bank(
    store: str,
    model: Mapping[str, str],
    *,
    version: int | None = None,
    where: Filter | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    searcher: ShardedSearcher | None = None,
) -> MemoryBank:
    """A version of a store, as the model that wrote it reads it.

    Args:
        store: Directory or URL.
        model: Fingerprint fields of the model (`ClaraModel.fingerprint_fields`).
        version: None means the newest, or that of ``searcher``.
        where: As `MemoryBank` takes it.
        dtype: Type of the gathered memories.
        device: Where they go.
        searcher: As `MemoryBank` takes it.

    Raises:
        FingerprintMismatchError: Another model wrote the store; names the fields that differ.
        StoreError: There is no such store or version.
        FilterError: ``where`` cannot be read, or does not fit the store's columns.
    """
    opened = MemoryStore.open(store, searcher.version if searcher else version)
    opened.require_fingerprint(Fingerprint(model), what="the model")
    return MemoryBank(opened, where=where, dtype=dtype, device=device, searcher=searcher)
