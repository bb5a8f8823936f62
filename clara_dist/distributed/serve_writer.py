"""The writer deployment: compresses documents that arrive over HTTP, and appends them to the served store.

The model is imported where the replica starts: the process that only deploys does without torch (300 MB, some seconds).
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from clara_dist.config.documents import DocumentsReply, DocumentsRequest, RemoveReply, RemoveRequest
from clara_dist.config.serve import ServeConfig
from clara_dist.errors import (
    CommitConflictError,
    ConflictError,
    CorruptStoreError,
    FingerprintMismatchError,
    RequestError,
    StorageError,
    StoreError,
    UnavailableError,
)
from clara_dist.store.append import append_shards
from clara_dist.store.delete import delete
from clara_dist.store.manifest import read_manifest
from clara_dist.store.storage import open_storage

# The store's own troubles, which are not the request's.
_OURS = (CorruptStoreError, FingerprintMismatchError, StorageError)


class Writer:
    """Adds and removes documents, one request after the other. A plain class: Serve wraps it in `serve_app`.

    Every change is one new version of the store, published whole or not at all; other writers may work beside it. What
    a request that was refused late has written lies unlisted until `store gc` deletes it.

    Args:
        config: What is served.
        device: ``cpu`` or ``cuda``.

    Raises:
        FingerprintMismatchError: Another model wrote the store; the message names the fields.
    """

    def __init__(self, config: ServeConfig, device: str) -> None:
        from clara_dist.config.compress import default_overlap_tokens
        from clara_dist.distributed.models import load_model
        from clara_dist.inference.compressor import DocumentCompressor
        from clara_dist.inference.passages import PassageSplitter

        clara = load_model(config, device)
        self._config = config
        self._compressor = DocumentCompressor(clara)
        self._splitter = PassageSplitter(clara.tokenizer, default_overlap_tokens(clara.config.doc_max_tokens))
        manifest = read_manifest(open_storage(config.store))
        manifest.fingerprint.require_match(
            self._compressor.fingerprint, f"the store {config.store}", f"the model {config.model}"
        )
        self._schema = manifest.schema
        self._turn = asyncio.Lock()

    async def add(self, request: DocumentsRequest) -> DocumentsReply:
        """Compress and append.

        Raises:
            RequestError: A document does not fit the store; none is added.
            ConflictError: A document is there already, and ``on_existing`` is ``error``; none is added.
            UnavailableError: Other writers were faster for too long.
        """
        # In a thread: the replica goes on answering Serve's probes.
        async with self._turn:
            return await asyncio.to_thread(self._add, request)

    async def remove(self, request: RemoveRequest) -> RemoveReply:
        """Delete what is there; reads the ids of the whole store.

        Raises:
            UnavailableError: Other writers were faster for too long.
        """
        async with self._turn:
            return await asyncio.to_thread(self._remove, request)

    def _add(self, request: DocumentsRequest) -> DocumentsReply:
        import torch

        from clara_dist.inference.building import write_documents

        torch.set_num_threads(self._config.threads)  # is each thread's own
        documents: list[dict[str, Any]] = [
            document.model_dump() | {"doc_id": document.doc_id or uuid.uuid4().hex} for document in request.documents
        ]
        try:
            shard = write_documents(self._compressor, self._splitter, self._schema, self._config.store, documents)
        except _OURS:
            raise
        except StoreError as error:
            raise RequestError(error.what, got=error.got, expected=error.expected) from error
        try:
            manifest = append_shards(
                self._config.store,
                self._schema,
                self._compressor.fingerprint,
                [shard],
                on_existing=request.on_existing,
                writer_info={"operation": "POST /v1/documents"},
            )
        except CommitConflictError as error:
            raise UnavailableError("other writers are changing the store", hint="send it again") from error
        except _OURS:
            raise
        except StoreError as error:
            hint = "on_existing skip keeps the stored ones, replace takes the new ones"
            raise ConflictError("a document is there already; none was added", got=error.got, hint=hint) from error
        doc_ids = [document["doc_id"] for document in documents]
        return DocumentsReply(store_version=manifest.version, doc_ids=doc_ids, n_passages=shard.rows)

    def _remove(self, request: RemoveRequest) -> RemoveReply:
        try:
            report = delete(self._config.store, doc_ids=request.doc_ids, missing_ok=True)
        except CommitConflictError as error:
            raise UnavailableError("other writers are changing the store", hint="send it again") from error
        return RemoveReply(
            store_version=report.manifest.version, n_passages=report.n_deleted, missing=list(report.missing)
        )
