"""LlamaIndex's retriever interface over a clara_dist server: ``pip install 'clara-dist[llama-index]'``."""

from __future__ import annotations

import asyncio
from typing import Any

from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from clara_dist.client import Client


class ClaraRetriever(BaseRetriever):
    """Finds documents by `Client.retrieve`. A node's score is the cosine.

    A node's ``metadata`` has ``doc_id``, ``parent_id``, ``title``, ``store_version`` and ``missing_shards``: not 0
    where a part of the store could not be searched.

    Args:
        url: The server, such as ``http://127.0.0.1:8000``.
        api_key: Its key, if it wants one.
        top_k: Documents per question; None takes the server's default.
        where: Which documents may be found, such as ``"year >= 2020"``; None: all.
        timeout_s: Longest wait for a reply.
        options: LlamaIndex's own, such as ``callback_manager``.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        top_k: int | None = None,
        where: str | None = None,
        timeout_s: float = 120.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._client = Client(url, api_key=api_key, timeout_s=timeout_s)
        self._top_k = top_k
        self._where = where

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """Best first; raises as `Client.retrieve` does."""
        reply = self._client.retrieve(query_bundle.query_str, top_k=self._top_k, where=self._where)
        shared = {"store_version": reply.store_version, "missing_shards": reply.missing_shards}
        nodes = []
        for source in reply.sources:
            metadata = source.model_dump(exclude={"text", "score"}) | shared
            # What a language model is shown is the text: ids and versions would only cost tokens.
            node = TextNode(
                id_=source.doc_id,
                text=source.text,
                metadata=metadata,
                excluded_llm_metadata_keys=list(metadata),
                excluded_embed_metadata_keys=list(metadata),
            )
            nodes.append(NodeWithScore(node=node, score=source.score))
        return nodes

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        # LlamaIndex would block the loop.
        return await asyncio.to_thread(self._retrieve, query_bundle)
