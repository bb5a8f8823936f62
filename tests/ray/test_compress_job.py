"""The compression job on a real Ray."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clara_dist.config.compress import CompressConfig
from clara_dist.distributed.compress_job import compress
from clara_dist.distributed.visibility import require_visible
from clara_dist.errors import ClusterError, ModelError, StoreError
from clara_dist.inference.compressor import DocumentCompressor
from clara_dist.model.clara import ClaraModel
from clara_dist.store import MemoryStore, verify

WORDS = ["rain", "gauges", "on", "the", "island", "are", "emptied", "at", "nine", "lighthouse", "Cape"]

# Kills its own process, with SIGKILL, as soon as the driver has heard of 50 documents.
KILLED_JOB = """
import os, signal, sys
from clara_dist.config.compress import CompressConfig
from clara_dist.distributed import compress_job

class Deadly(compress_job.Progress):
    def add(self, n):
        super().add(n)
        if self.what == "documents" and self.done >= 50:
            os.kill(os.getpid(), signal.SIGKILL)

compress_job.Progress = Deadly
compress_job.compress(CompressConfig.model_validate_json(sys.argv[1]), address="local", num_cpus=2)
"""


@pytest.fixture
def config(tmp_path: Path, tiny_clara_dir: Path) -> CompressConfig:
    """300 good documents and two bad rows, in units of 25 lines."""
    lines = [
        json.dumps({"doc_id": f"d{i:03}", "text": " ".join(WORDS[i * j % 11] for j in range(1, i % 9 + 2))})
        for i in range(300)
    ]
    lines.insert(50, json.dumps({"doc_id": "d007", "text": "an id that was there"}))
    lines.insert(200, "{broken")
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("\n".join(lines), encoding="utf-8")
    return CompressConfig(
        corpus=(str(corpus),),
        model=str(tiny_clara_dir),
        store=str(tmp_path / "store"),
        rows_per_shard=25,
        long_documents="truncate",  # a row a document, as of the compressor that it is compared with
        workers=2,
    )


def assert_whole(config: CompressConfig) -> None:
    """All 300 documents, in order, each with the memory that the serial compressor gives."""
    report = verify(config.store)
    assert report.ok, report.problems
    store = MemoryStore.open(config.store)
    assert store.doc_ids(range(300)) == [f"d{i:03}" for i in range(300)]
    texts = [document.text for document in store.documents(range(300))]
    serial = DocumentCompressor(ClaraModel.from_pretrained(config.model)).compress([("", text) for text in texts])
    # Two roundings to fp16 of fp32 values that differ by batching alone.
    np.testing.assert_allclose(store.take_memory(np.arange(300)), serial.memory_SMD, rtol=2**-10, atol=1e-5)


def test_corpus_through_the_actor_pool(
    local_ray: None, config: CompressConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    report = compress(config)
    assert (report.n_documents, report.n_rejected, report.n_kept, report.version) == (300, 2, 0, 1)
    assert_whole(config)
    rejects = [json.loads(line) for line in Path(report.rejects).read_text(encoding="utf-8").splitlines()]
    assert [(r["line"], r["doc_id"], r["reason"].split(" (")[0].split(":")[0]) for r in rejects] == [
        (51, "d007", "duplicate doc_id"),
        (201, None, "invalid JSON"),
    ]
    progress = capfd.readouterr().err
    assert "documents 300/300" in progress
    assert "Dataset" not in progress, "Ray Data's own lines should be quiet"


def test_job_killed_midway_is_resumed(local_ray: None, config: CompressConfig) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED_JOB, config.model_dump_json()], check=False)
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(StoreError, match="no memory store"):
        MemoryStore.open(config.store)
    left = {path: path.stat().st_ino for path in Path(config.store, "shards").glob("[!.]*.arrow")}
    report = compress(config)
    assert report.n_documents == 300
    assert report.n_kept >= 50
    assert {path: path.stat().st_ino for path in left} == left, "finished shards are not written again"
    assert_whole(config)


def test_worker_error_arrives_as_itself(local_ray: None, config: CompressConfig, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    for name in ("config.json", "memory_embeddings.safetensors"):
        (tmp_path / "broken" / name).write_bytes(Path(config.model, name).read_bytes())
    with pytest.raises(ModelError, match="tokenizer"):
        compress(CompressConfig(**{**config.model_dump(), "model": str(tmp_path / "broken")}))


def test_path_that_no_node_sees(local_ray: None, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"do not see(.|\n)*no /nowhere/model"):
        require_visible(["/nowhere/model", str(tmp_path)], str(tmp_path / "store"))
    assert list((tmp_path / "store").iterdir()) == []
