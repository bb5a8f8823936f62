"""The routes that change the served store. Imports no ray, no torch, no transformers."""

from __future__ import annotations

from typing import Protocol

from fastapi import APIRouter

from clara_dist.config.documents import DocumentsReply, DocumentsRequest, RemoveReply, RemoveRequest
from clara_dist.config.serve import LimitsConfig
from clara_dist.distributed.serve_errors import ApiError

DOCUMENTS_PATH = "/v1/documents"


class DocumentWriter(Protocol):
    """What stands behind the routes. Every method may raise `ApiError` or any error that `api_error` maps."""

    async def add(self, request: DocumentsRequest) -> DocumentsReply: ...

    async def remove(self, request: RemoveRequest) -> RemoveReply: ...


def documents_routes(limits: LimitsConfig, writer: DocumentWriter) -> APIRouter:
    """The router."""
    router = APIRouter()

    @router.post(DOCUMENTS_PATH)
    async def add(request: DocumentsRequest) -> DocumentsReply:
        _require_few("documents", len(request.documents), limits)
        for number, document in enumerate(request.documents):
            if len(document.text) > limits.max_document_chars:
                name = f"documents.{number}.text"
                found = f"{len(document.text)} characters, at most {limits.max_document_chars} are allowed"
                raise ApiError(400, f"{name}: {found}", param=name)
        return await writer.add(request)

    @router.delete(DOCUMENTS_PATH)
    async def remove(request: RemoveRequest) -> RemoveReply:
        _require_few("doc_ids", len(request.doc_ids), limits)
        return await writer.remove(request)

    @router.delete(DOCUMENTS_PATH + "/{doc_id:path}")
    async def remove_one(doc_id: str) -> RemoveReply:
        reply = await writer.remove(RemoveRequest(doc_ids=[doc_id]))
        if reply.missing:
            raise ApiError(404, "there is no document of this id")
        return reply

    return router


def _require_few(name: str, n: int, limits: LimitsConfig) -> None:
    if n > limits.max_documents:
        raise ApiError(400, f"{name}: {n} documents, at most {limits.max_documents} are allowed", param=name)
