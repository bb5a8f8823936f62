"""The retrievers of LangChain and LlamaIndex against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import httpx
import pytest
from langchain_core.runnables import RunnableLambda

from clara_dist.config.http import AnswerReply, Health, RetrieveReply, Source, Timings
from clara_dist.distributed.serve_messages import AnswerEvent, Ask
from clara_dist.errors import RequestError
from clara_dist.integrations.langchain import ClaraRetriever as LangChainRetriever
from clara_dist.integrations.llama_index import ClaraRetriever as LlamaIndexRetriever
from http_server import serving

QUESTION = "Where are the rain gauges?"


def test_langchain(server: str, http: httpx.Client) -> None:
    expected = http.post("/v1/retrieve", json={"question": QUESTION, "top_k": 3, "where": "number < 30"}).json()
    retriever = LangChainRetriever(url=server, top_k=3, where="number < 30")
    documents = retriever.invoke(QUESTION)
    assert [document.id for document in documents] == [source["doc_id"] for source in expected["sources"]]
    for document, source in zip(documents, expected["sources"], strict=True):
        assert document.page_content == source["text"]
        shown = source | {"store_version": 1, "missing_shards": 0}
        assert document.metadata == {name: value for name, value in shown.items() if name != "text"}
    assert asyncio.run(retriever.ainvoke(QUESTION)) == documents
    for batch in asyncio.run(retriever.abatch([QUESTION, QUESTION])):
        assert [document.id for document in batch] == [document.id for document in documents]
    chain = retriever | RunnableLambda(lambda found: found[0].metadata["title"])
    assert chain.invoke(QUESTION) == expected["sources"][0]["title"]


def test_llama_index(server: str, http: httpx.Client) -> None:
    expected = http.post("/v1/retrieve", json={"question": QUESTION, "top_k": 3, "where": "number < 30"}).json()
    retriever = LlamaIndexRetriever(server, top_k=3, where="number < 30")
    nodes = retriever.retrieve(QUESTION)
    found = [(node.node_id, node.score, node.get_content()) for node in nodes]
    assert found == [(source["doc_id"], source["score"], source["text"]) for source in expected["sources"]]
    assert nodes[0].metadata["title"] == expected["sources"][0]["title"]
    assert [node.node_id for node in asyncio.run(retriever.aretrieve(QUESTION))] == [node.node_id for node in nodes]


class Flagged:
    """A backend that has lost a part of its store."""

    async def health(self) -> Health:
        raise AssertionError("not asked for here")

    async def answer(self, ask: Ask) -> AnswerReply:
        raise AssertionError("not asked for here")

    def stream(self, ask: Ask) -> AsyncGenerator[AnswerEvent, None]:
        raise AssertionError("not asked for here")

    async def retrieve(self, question: str, top_k: int, where: str | None) -> RetrieveReply:
        source = Source(doc_id="d#1", parent_id="d", title="T", score=0.5, text=question)
        timings = Timings(queue=0, reason=0, retrieve=0, total=0)
        return RetrieveReply(
            sources=[source] * top_k, timings=timings, model_version="m", store_version=7, missing_shards=1
        )


def test_keys_are_sent_and_gaps_are_shown() -> None:
    with serving(Flagged(), keys="secret", top_k=2) as url:
        with pytest.raises(RequestError, match="401"):
            LangChainRetriever(url=url).invoke("q")
        with pytest.raises(RequestError, match="401"):
            LlamaIndexRetriever(url).retrieve("q")
        retriever = LangChainRetriever(url=url, api_key="secret")
        assert "secret" not in repr(retriever)
        documents = retriever.invoke("q")
        nodes = LlamaIndexRetriever(url, api_key="secret").retrieve("q")
        assert [document.metadata["missing_shards"] for document in documents] == [1, 1]
        assert nodes[0].metadata["store_version"] == 7
        assert nodes[0].metadata["parent_id"] == "d"
