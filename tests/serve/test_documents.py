"""Documents that come and go over HTTP: the routes over a real writer in this process, and the whole road on Serve."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import ValidationError

from clara_dist.config.serve import LimitsConfig, ServeConfig
from clara_dist.distributed.serve_writer import Writer
from clara_dist.errors import FingerprintMismatchError
from clara_dist.inference.compressor import DocumentCompressor
from clara_dist.model import ClaraModel
from clara_dist.store import MemoryStore
from clara_dist.store.fingerprint import Fingerprint
from clara_dist.store.manifest import versions
from clara_dist.store.storage import open_storage
from clara_dist.store.verify import verify
from http_server import serving

N_DOCUMENTS = 37
LIMITS = LimitsConfig(max_documents=5, max_document_chars=2_000, max_documents_bytes=20_000, max_body_bytes=100)


@pytest.fixture
def own_store(store_dir: Path, tmp_path: Path) -> Path:
    shutil.copytree(store_dir, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def http_writer(tiny_clara_dir: Path, own_store: Path) -> Iterator[httpx.Client]:
    config = ServeConfig(model=str(tiny_clara_dir), store=str(own_store), allow_writes=True)
    backend: Any = None  # nothing is asked here
    with (
        serving(backend, "secret", Writer(config, "cpu"), limits=LIMITS) as url,
        httpx.Client(base_url=url, headers={"Authorization": "Bearer secret"}, timeout=60, trust_env=False) as client,
    ):
        yield client


def remove(client: httpx.Client, doc_ids: list[str]) -> httpx.Response:
    return client.request("DELETE", "/v1/documents", json={"doc_ids": doc_ids})


def test_documents_become_the_memories_that_a_job_would_have_made(
    http_writer: httpx.Client, own_store: Path, tiny_clara_dir: Path
) -> None:
    long = " ".join(["The lighthouse at Cape Merrow was built in 1871."] * 6)
    new = [
        {"doc_id": "new/1", "title": "Ada", "text": "Ada is an engineer.", "metadata": {"number": 99, "other": [1]}},
        {"text": long},
    ]
    reply = http_writer.post("/v1/documents", json={"documents": new})
    assert reply.status_code == 200, reply.text
    first, made_up = reply.json()["doc_ids"]
    assert (reply.json()["store_version"], first) == (2, "new/1")
    store = MemoryStore.open(own_store)
    passages = store.rows_of_documents([made_up])[0]
    assert reply.json()["n_passages"] == 1 + len(passages)
    assert len(passages) > 2
    row = store.rows_of(["new/1"])
    assert store.rows_where("number = 99").tolist() == row.tolist()
    expected = DocumentCompressor(ClaraModel.from_pretrained(tiny_clara_dir)).compress([("Ada", "Ada is an engineer.")])
    # Measured: 0; float16 apart, a batch of other lengths could differ by 1e-6.
    np.testing.assert_allclose(store.take_memory(row), expected.memory_SMD, atol=1e-5)

    reply = remove(http_writer, ["new/1", "nowhere"])
    assert reply.json() == {"store_version": 3, "n_passages": 1, "missing": ["nowhere"]}
    assert http_writer.delete("/v1/documents/nowhere").status_code == 404
    reply = http_writer.delete(f"/v1/documents/{made_up}")
    assert (reply.status_code, reply.json()["n_passages"]) == (200, len(passages))
    assert MemoryStore.open(own_store).n_documents == N_DOCUMENTS
    assert verify(str(own_store)).ok


def test_what_is_there_already_is_refused_kept_or_replaced(http_writer: httpx.Client, own_store: Path) -> None:
    body = {"documents": [{"doc_id": "doc-3", "text": "Rain."}, {"doc_id": "doc-99", "text": "Wind."}]}
    refused = http_writer.post("/v1/documents", json=body)
    assert refused.status_code == 409
    assert "'doc-3'" in refused.json()["error"]["message"]
    assert MemoryStore.open(own_store).version == 1

    def text_after(on_existing: str) -> str:
        assert http_writer.post("/v1/documents", json=body | {"on_existing": on_existing}).status_code == 200
        store = MemoryStore.open(own_store)
        assert store.n_documents == N_DOCUMENTS + 1
        return store.documents(store.rows_of(["doc-3"]))[0].text

    assert text_after("skip") != "Rain."
    assert text_after("replace") == "Rain."


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"documents": []}, 400, "documents"),
        ({"documents": [{"text": "x"}] * 6}, 400, "at most 5"),
        ({"documents": [{"text": "x" * 2_001}]}, 400, "documents.0.text: 2001 characters"),
        ({"documents": [{"text": "x"}, {"text": " "}]}, 400, "documents.1.text"),
        ({"documents": [{"text": "a\0"}]}, 400, "NUL"),
        ({"documents": [{"doc_id": "", "text": "x"}]}, 400, "documents.0.doc_id"),
        ({"documents": [{"doc_id": "y" * 513, "text": "x"}]}, 400, "documents.0.doc_id"),
        ({"documents": [{"text": "x", "metadata": {"number": "many"}}]}, 400, "number"),
        ({"documents": [{"text": "x", "colour": "red"}]}, 400, "documents.0.colour"),
        ({"documents": [{"doc_id": "a", "text": "x"}, {"doc_id": "a", "text": "y"}]}, 400, "'a'"),
        ({"documents": [{"text": "x" * 1_900}] * 5, "on_existing": "x" * 12_000}, 413, "20000 bytes"),
    ],
)
def test_what_does_not_fit_changes_nothing(
    http_writer: httpx.Client, own_store: Path, body: dict[str, Any], status: int, message: str
) -> None:
    reply = http_writer.post("/v1/documents", json=body)
    assert (reply.status_code, message in reply.json()["error"]["message"]) == (status, True), reply.text
    assert versions(open_storage(str(own_store))) == [1]


def test_writes_need_a_key_and_a_server_that_offers_them(http_writer: httpx.Client, own_store: Path) -> None:
    body = {"documents": [{"text": "x"}]}
    for response in (
        http_writer.post("/v1/documents", json=body, headers={"Authorization": "Bearer other"}),
        http_writer.delete("/v1/documents/doc-3", headers={"Authorization": ""}),
    ):
        assert response.status_code == 401
    assert remove(http_writer, ["x"] * 6).status_code == 400
    assert http_writer.request("DELETE", "/v1/documents", content=b"{}").status_code == 415
    assert MemoryStore.open(own_store).version == 1
    backend: Any = None
    with serving(backend) as url:
        assert httpx.post(f"{url}/v1/documents", json=body, trust_env=False).status_code == 404
        assert "/v1/documents" not in httpx.get(f"{url}/openapi.json", trust_env=False).json()["paths"]
    assert "/v1/documents" in http_writer.get("/openapi.json").json()["paths"]
    for wrong in ({"store_version": 1}, {"store_refresh_s": 0}):
        with pytest.raises(ValidationError, match="follows its store"):
            ServeConfig(model="m", store="s", allow_writes=True, **wrong)


def test_another_models_store_is_not_written_into(tiny_clara_dir: Path, write_store: Any, tmp_path: Path) -> None:
    fields = dict(ClaraModel.from_pretrained(tiny_clara_dir).fingerprint_fields())
    write_store(tmp_path / "store", Fingerprint(fields | {"compressor": "another"}))
    with pytest.raises(FingerprintMismatchError, match="compressor"):
        Writer(ServeConfig(model=str(tiny_clara_dir), store=str(tmp_path / "store")), "cpu")


def test_a_document_is_found_soon_after_it_came_and_never_after_it_left(
    server: str, http: httpx.Client, serve_config: ServeConfig, own_store: Path
) -> None:
    from ray import serve

    from clara_dist.distributed.serve_app import deploy

    changes = {"store": str(own_store), "store_refresh_s": 0.2, "allow_writes": True, "writer_cpus": 0.05}
    limits = serve_config.limits.model_copy(update={"max_top_k": N_DOCUMENTS + 1})
    deploy(serve_config.model_copy(update=changes | {"limits": limits}), name="writing", route_prefix="/writing")

    def found_at(version: int) -> list[str]:
        """What is found once the server has come to a version."""
        deadline = time.monotonic() + 60
        while True:
            reply = http.post("/writing/v1/retrieve", json={"question": "Why?", "where": "number = 99"}).json()
            if reply["store_version"] >= version:
                return [source["doc_id"] for source in reply["sources"]]
            assert time.monotonic() < deadline, reply

    try:
        assert found_at(1) == []
        document = {"doc_id": "new", "text": "Ada is an engineer.", "metadata": {"number": 99}}
        reply = http.post("/writing/v1/documents", json={"documents": [document]})
        assert reply.status_code == 200, reply.text
        assert found_at(reply.json()["store_version"]) == ["new"]
        reply = http.delete("/writing/v1/documents/new")
        assert found_at(reply.json()["store_version"]) == []
        assert http.post("/v1/documents", json={"documents": [document]}).status_code == 404
    finally:
        serve.delete("writing")
