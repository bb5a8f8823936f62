"""One server for all tests of this folder: a tiny random model, a small store, a local Ray with Serve."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import torch

from clara_dist.config.serve import LimitsConfig, ServeConfig
from clara_dist.inference.compressor import DocumentCompressor
from clara_dist.model import ClaraModel
from clara_dist.store.fingerprint import Fingerprint
from clara_dist.store.schema import StoreSchema
from clara_dist.store.writer import commit, write_shard

WORDS = ["The", "lighthouse", "at", "Cape", "Merrow", "was", "built", "in", "1871", "rain", "gauges", "on", "island"]
N_DOCUMENTS = 37


StoreMaker = Callable[[Path, "Fingerprint | None"], None]


@pytest.fixture(scope="session")
def write_store(tiny_clara_dir: Path) -> StoreMaker:
    """Writes a store of random passages in two shards, under the model's own fingerprint or a made-up one."""
    random = torch.Generator().manual_seed(5)
    picks = [torch.randint(0, len(WORDS), (4 + i % 7,), generator=random).tolist() for i in range(N_DOCUMENTS)]
    texts = [" ".join(WORDS[j] for j in pick) + f" {i}" for i, pick in enumerate(picks)]
    compressor = DocumentCompressor(ClaraModel.from_pretrained(tiny_clara_dir))
    made = compressor.compress([("", text) for text in texts])
    schema = StoreSchema(made.memory_SMD.shape[1], made.memory_SMD.shape[2], {"number": "int64", "year": "int64"})

    def write(path: Path, fingerprint: Fingerprint | None) -> None:
        shards = []
        for name, part in (("a", slice(0, 20)), ("b", slice(20, N_DOCUMENTS))):
            rows = range(N_DOCUMENTS)[part]
            table = schema.to_table(
                doc_ids=[f"doc-{i}" for i in rows],
                titles=[f"Title {i}" for i in rows],
                texts=texts[part],
                metadata=[{"number": i, "year": 1850 + i} for i in rows],
                memory_SMD=made.memory_SMD[part],
                n_tokens=made.n_tokens_S[part],
                truncated=made.truncated_S[part],
            )
            shards.append(write_shard(path, table, name))
        commit(path, schema, fingerprint or compressor.fingerprint, shards)

    return write


@pytest.fixture(scope="session")
def store_dir(write_store: StoreMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "store"
    write_store(path, None)
    return path


@pytest.fixture(scope="session")
def serve_config(tiny_clara_dir: Path, store_dir: Path) -> ServeConfig:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return ServeConfig(
        model=str(tiny_clara_dir),
        store=str(store_dir),
        port=port,
        top_k=2,
        max_tokens=8,
        batch_size=8,
        limits=LimitsConfig(
            max_top_k=N_DOCUMENTS + 3,
            max_tokens=40,
            max_queued_requests=24,
            max_body_bytes=5_000,
            shard_timeout_s=1.0,
        ),
        # One of the store's shards each: whatever the tests of this folder find, they find in two places.
        retriever_shards=2,
        on_lost_shard="partial",
        # Room for the applications that some tests deploy beside it.
        engine_cpus=0.1,
        retriever_cpus=0.05,
        start_timeout_s=240,
    )


@pytest.fixture(scope="session")
def server(serve_config: ServeConfig) -> Iterator[str]:
    """URL of the one server. Ray is local, and ends with the tests of this folder."""
    from clara_dist.distributed.serve_app import serving

    with serving(serve_config, address="local") as url:
        yield url


@pytest.fixture
def http(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, timeout=60, trust_env=False) as client:
        yield client
