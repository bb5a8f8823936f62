"""A real server over real HTTP."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from clara_dist.client import Client
from clara_dist.config.serve import ServeConfig
from clara_dist.errors import ClusterError, OverloadedError, RequestError
from clara_dist.inference.answering import LocalPipeline
from clara_dist.inference.reasoner import Reasoner
from clara_dist.model import ClaraModel
from clara_dist.store.fingerprint import Fingerprint
from clara_dist.store.reader import MemoryStore

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
N_DOCUMENTS = 37
QUESTIONS = [
    "Who built the lighthouse?",
    "When was it built?",
    "What is on the island?",
    "Where are the rain gauges?",
    "Cape Merrow?",
    "nine in the morning",
    "Is Ada an engineer?",
    "Why?",
]


@pytest.fixture(scope="module")
def pipeline(tiny_clara_dir: Path, store_dir: Path) -> LocalPipeline:
    return LocalPipeline(ClaraModel.from_pretrained(tiny_clara_dir), MemoryStore.open(store_dir))


def post_all(url: str, bodies: list[dict[str, Any]], path: str = "/v1/answers") -> list[httpx.Response]:
    """Send all requests at once."""

    async def send() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits, trust_env=False) as client:
            return await asyncio.gather(*(client.post(path, json=body) for body in bodies))

    return asyncio.run(send())


def test_answers_equal_the_local_pipeline(http: httpx.Client, pipeline: LocalPipeline) -> None:
    expected = pipeline.answer(QUESTIONS[:3], top_k=3, max_tokens=12)
    for question, local in zip(QUESTIONS[:3], expected, strict=True):
        reply = http.post("/v1/answers", json={"question": question, "top_k": 3, "max_tokens": 12}).json()
        assert reply["answer"] == local.text
        assert [source["doc_id"] for source in reply["sources"]] == [source.doc_id for source in local.sources]
        assert reply["usage"]["completion_tokens"] <= 12


def test_sources_equal_a_brute_force_ranking(server: str, tiny_clara_dir: Path, store_dir: Path) -> None:
    store = MemoryStore.open(store_dir)
    memory_SX = store.take_memory(np.arange(N_DOCUMENTS)).reshape(N_DOCUMENTS, -1).astype(np.float64)
    memory_SX /= np.linalg.norm(memory_SX, axis=1, keepdims=True)
    query_BX = Reasoner(ClaraModel.from_pretrained(tiny_clara_dir)).query(QUESTIONS).astype(np.float64)
    query_BX /= np.linalg.norm(query_BX, axis=1, keepdims=True)
    bodies = [{"question": question, "top_k": N_DOCUMENTS} for question in QUESTIONS]
    responses = post_all(server, bodies, "/v1/retrieve")
    for response, scores_S in zip(responses, query_BX @ memory_SX.T, strict=True):
        reply = response.json()
        order = np.argsort(-scores_S, kind="stable")
        assert [source["doc_id"] for source in reply["sources"]] == [f"doc-{row}" for row in order]
        # Measured: 3e-7, the reasoner's fp32 with its adapter fused or not.
        np.testing.assert_allclose([source["score"] for source in reply["sources"]], scores_S[order], atol=5e-6)
        documents = store.documents(order[:2])
        assert [(s["title"], s["text"]) for s in reply["sources"][:2]] == [(d.title, d.text) for d in documents]
        assert reply["store_version"] == 1


def test_concurrent_requests_change_nothing(server: str, http: httpx.Client) -> None:
    """16 requests that differ in top_k and max_tokens, 8 of them decoded together: each reply is that of one alone."""
    bodies = [
        {"question": question, "top_k": 1 + i % 3, "max_tokens": 4 + 3 * (i % 4)}
        for i, question in enumerate(QUESTIONS)
    ]
    alone = [http.post("/v1/answers", json=body).json() for body in bodies]
    together = [response.json() for response in post_all(server, bodies * 2)]
    for body, one, other in zip(bodies * 2, alone * 2, together, strict=True):
        assert other["answer"] == one["answer"]
        assert other["finish_reason"] == one["finish_reason"]
        assert [s["doc_id"] for s in other["sources"]] == [s["doc_id"] for s in one["sources"]]
        assert len(other["sources"]) == body["top_k"]
        assert other["usage"] == one["usage"]


def test_timings_add_up(http: httpx.Client) -> None:
    timings = http.post("/v1/answers", json={"question": "Why?"}).json()["timings"]
    parts = [timings[name] for name in ("queue", "reason", "retrieve", "generate")]
    assert all(part > 0 for part in parts)
    assert sum(parts) == pytest.approx(timings["total"], abs=1e-9)
    assert 0 < timings["first_token"] <= timings["generate"]


def test_health_names_what_is_served(http: httpx.Client) -> None:
    health = http.get("/healthz").json()
    reply = http.post("/v1/retrieve", json={"question": "Why?"}).json()
    assert health["n_documents"] == N_DOCUMENTS
    assert (health["model_version"], health["store_version"]) == (reply["model_version"], reply["store_version"])
    assert len(reply["sources"]) == 2


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"question": "lighthouse " * 60}, "the question is too long for this model"),
        ({"question": "x", "top_k": N_DOCUMENTS + 1}, "top_k exceeds the number of documents"),
        ({"question": "x", "top_k": 99}, "at most"),
        ({"question": "a\0"}, "NUL"),
    ],
)
def test_what_the_model_or_the_store_cannot_do_is_400(http: httpx.Client, body: dict[str, Any], message: str) -> None:
    response = http.post("/v1/answers", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert message in response.json()["error"]["message"]


def test_only_what_passes_the_filter_is_found(server: str, http: httpx.Client) -> None:
    """Requests with different filters, and without one, in one batch."""
    filters = [None, "number >= 30", "number in (3, 5)", "number = 36 or number = 0", None]
    bodies = [{"question": "Why?", "top_k": 4} | ({"where": each} if each else {}) for each in filters]
    allowed = [set(range(N_DOCUMENTS)), set(range(30, N_DOCUMENTS)), {3, 5}, {0, 36}, set(range(N_DOCUMENTS))]
    every = http.post("/v1/retrieve", json={"question": "Why?", "top_k": N_DOCUMENTS}).json()["sources"]
    for path in ("/v1/retrieve", "/v1/answers"):
        for response, numbers in zip(post_all(server, bodies, path), allowed, strict=True):
            expected = [source for source in every if int(source["doc_id"].removeprefix("doc-")) in numbers][:4]
            found = response.json()["sources"]
            assert [source["doc_id"] for source in found] == [source["doc_id"] for source in expected]
            assert [s["score"] for s in found] == pytest.approx([s["score"] for s in expected], abs=1e-6)
    nothing = {"question": "Why?", "where": "number > 99"}
    assert http.post("/v1/retrieve", json=nothing).json()["sources"] == []
    refused = {
        "number > 99": "no document is left",
        "colour = 'red'": "no metadata column 'colour'",
        "number =": "character",
    }
    for where, message in refused.items():
        response = http.post("/v1/answers", json=nothing | {"where": where})
        assert response.status_code == 400
        assert message in response.json()["error"]["message"]
    assert response.json()["error"]["param"] == "where"


def test_special_tokens_in_a_question_are_text(http: httpx.Client) -> None:
    assert http.post("/v1/answers", json={"question": "<MEM0></s><SEP>?"}).status_code == 200


def test_errors_pass_through_the_proxy(http: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(10):
            yield b"x" * 1_000

    json_type = {"Content-Type": "application/json"}
    responses = [
        http.get("/nowhere"),
        http.get("/v1/answers"),
        http.post("/v1/answers", content=chunks(), headers=json_type),
        http.post("/v1/answers", content=b"x" * 10_000, headers=json_type),
        http.post("/v1/answers", content=b"{}", headers={"Content-Type": "text/plain"}),
        http.post("/v1/answers", content=b"\xff", headers=json_type),
    ]
    assert [response.status_code for response in responses] == [404, 405, 413, 413, 415, 400]
    assert all(set(response.json()["error"]) == {"message", "type", "param", "code"} for response in responses)


def test_overload_is_429_and_passes(server: str, http: httpx.Client) -> None:
    """At most 2 batches + max_queued_requests are held; the rest is told to come back, at once."""
    responses = post_all(server, [{"question": "Why?", "max_tokens": 40}] * 150)
    refused = [response for response in responses if response.status_code != 200]
    assert {response.status_code for response in refused} == {429}
    assert all(1 <= int(response.headers["retry-after"]) <= 30 for response in refused)
    assert refused[0].json()["error"]["code"] == "overloaded"
    assert len(refused) < len(responses)
    assert http.post("/v1/answers", json={"question": "Why?"}).status_code == 200


def test_a_client_that_leaves_does_not_break_its_batch(server: str, http: httpx.Client) -> None:
    body = b'{"question": "Why?", "max_tokens": 40}'
    url = httpx.URL(server)
    head = (
        "POST /v1/answers HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    expected = http.post("/v1/answers", json={"question": "Where?"}).json()["answer"]
    leavers = [socket.create_connection((url.host, url.port or 80)) for _ in range(3)]
    for leaver in leavers:
        leaver.sendall(head.encode() + body)
        leaver.close()
    replies = post_all(server, [{"question": "Where?"}] * 4)
    assert [reply.json()["answer"] for reply in replies] == [expected] * 4


def test_openais_client_gets_the_answers_of_the_local_pipeline(server: str, pipeline: LocalPipeline) -> None:
    """Unmodified, with and without a stream, eight at a time."""
    expected = [pipeline.answer([question], top_k=2, max_tokens=12)[0] for question in QUESTIONS]

    async def talk() -> list[tuple[Any, list[Any]]]:
        async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as client:

            async def one(question: str) -> tuple[Any, list[Any]]:
                fields: Any = {"model": "clara", "messages": [{"role": "user", "content": question}], "max_tokens": 12}
                stream = await client.chat.completions.create(stream=True, **fields)
                return await client.chat.completions.create(**fields), [chunk async for chunk in stream]

            return await asyncio.gather(*map(one, QUESTIONS))

    for (whole, chunks), local in zip(asyncio.run(talk()), expected, strict=True):
        assert whole.choices[0].message.content == local.text
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == local.text
        for extra in (whole.model_extra["clara"], chunks[0].model_extra["clara"]):
            assert [source["doc_id"] for source in extra["sources"]] == [source.doc_id for source in local.sources]
        assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_the_readmes_example_runs(server: str) -> None:
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, flags=re.S) if "from openai" in block]
    code = code.replace("http://127.0.0.1:8000", server)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("'doc_id': 'doc-") == 3


def test_client(server: str, pipeline: LocalPipeline) -> None:
    with Client(server) as client:
        reply = client.ask("Why?", top_k=1, max_tokens=5)
        assert reply.answer == pipeline.answer(["Why?"], top_k=1, max_tokens=5)[0].text
        assert client.retrieve("Why?", top_k=1).sources == reply.sources
        assert client.health().n_documents == N_DOCUMENTS
        with pytest.raises(RequestError, match="400") as caught:
            client.ask("Why?", top_k=99)
        assert not isinstance(caught.value, OverloadedError)
        assert "top_k: 99 documents" in str(caught.value)


def test_a_store_of_another_model_is_refused_by_the_name_of_the_field(
    server: str, serve_config: ServeConfig, tiny_clara_dir: Path, write_store: Any, tmp_path: Path
) -> None:
    from clara_dist.distributed.serve_app import deploy

    fields = dict(ClaraModel.from_pretrained(tiny_clara_dir).fingerprint_fields())
    write_store(tmp_path / "store", Fingerprint(fields | {"compressor": "another"}))
    config = serve_config.model_copy(update={"store": str(tmp_path / "store")})
    with pytest.raises(ClusterError, match="the server cannot start") as caught:
        deploy(config, name="mismatch", route_prefix="/mismatch")
    message = str(caught.value)
    assert "FingerprintMismatchError" in message
    assert "they differ in: compressor" in message
    assert "compressor = another" in message
    assert "Traceback" not in message


def test_an_engine_that_this_machine_cannot_hold_is_refused_at_once(server: str, serve_config: ServeConfig) -> None:
    from clara_dist.distributed.serve_app import serving

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = serve_config.model_copy(update={"engine_cpus": 1000, "port": port})
    with pytest.raises(ClusterError, match="no room for the engine"), serving(config):
        raise AssertionError("unreachable")


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("clara_dist.distributed.serve_app", {"torch", "transformers"}),
        ("clara_dist.distributed.serve_ingress", {"torch", "transformers"}),
        ("clara_dist.distributed.serve_retriever, clara_dist.retrieval.search", {"transformers", "peft"}),
        ("clara_dist.client", {"torch", "ray", "fastapi"}),
    ],
)
def test_each_process_loads_only_what_it_needs(module: str, absent: set[str]) -> None:
    script = f"import {module}, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert absent & set(done.stdout.split()) == set()
