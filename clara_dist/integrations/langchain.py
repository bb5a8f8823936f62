"""LangChain's retriever interface over a clara_dist server: ``pip install 'clara-dist[langchain]'``."""

from __future__ import annotations

from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import PrivateAttr, SecretStr

from clara_dist.client import Client


class ClaraRetriever(BaseRetriever):
    """Finds documents by `Client.retrieve`; its async methods run that in a thread, as LangChain does by itself.

    A document's ``metadata`` has ``doc_id``, ``parent_id``, ``title``, ``score`` (the cosine), ``store_version`` and
    ``missing_shards``: not 0 where a part of the store could not be searched.

    Attributes:
        url: The server, such as ``http://127.0.0.1:8000``.
        api_key: Its key, if it wants one.
        top_k: Documents per question; None takes the server's default.
        where: Which documents may be found, such as ``"year >= 2020"``; None: all.
        timeout_s: Longest wait for a reply.
    """

    url: str
    api_key: SecretStr | None = None
    top_k: int | None = None
    where: str | None = None
    timeout_s: float = 120.0
    _client: Client = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        key = None if self.api_key is None else self.api_key.get_secret_value()
        self._client = Client(self.url, api_key=key, timeout_s=self.timeout_s)

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        """Best first; raises as `Client.retrieve` does."""
        del run_manager
        reply = self._client.retrieve(query, top_k=self.top_k, where=self.where)
        shared = {"store_version": reply.store_version, "missing_shards": reply.missing_shards}
        return [
            Document(id=source.doc_id, page_content=source.text, metadata=source.model_dump(exclude={"text"}) | shared)
            for source in reply.sources
        ]
