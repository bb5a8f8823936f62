"""A whole pipeline, and the server of what it made, as submitted jobs: stopped in the middle, going on, answering."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from chaos_corpus import write_config
from job_head import Head, free_ports, logs_of_last_job, started_head, stop_last_job, submitted_by_ray


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # As the manifests set it: of Ray's own 3 s a shard under way may need more.
    with started_head(RAY_JOB_STOP_WAIT_TIME_S="300") as head:
        yield head


def test_a_pipeline_is_stopped_goes_on_and_its_model_is_served(head: Head, tiny_base_dir: Path, tmp_path: Path) -> None:
    config = write_pipeline(tmp_path, tiny_base_dir)
    pipeline = ["--working-dir", ".", "--", "python", "jobs/pipeline.py", "--config", config, "--resume"]
    process = submitted_by_ray(head, *pipeline)
    shards = tmp_path / "run" / "store" / "shards"
    while len(list(shards.glob("[!.]*.arrow"))) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    out = stop_last_job(head, process)
    assert "stopped; what is finished stays in" in out, out
    kept = {path: path.stat().st_ino for path in shards.glob("[!.]*.arrow")}
    assert 3 <= len(kept) < 201
    done = submitted_by_ray(head, *pipeline)
    out, _ = done.communicate(timeout=600)
    assert done.returncode == 0, out
    assert "[1/4] train: compression: finished earlier" in out
    assert "800 documents in 201 shards" in out, out
    assert {path: path.stat().st_ino for path in kept} == kept
    report = json.loads((tmp_path / "run" / "report" / "report.json").read_text(encoding="utf-8"))
    assert (report["n_questions"], report["n_documents"]) == (4, 800)

    (port,) = free_ports(1)
    trained = yaml.safe_load(Path(config).read_text(encoding="utf-8"))["joint"]["stages"][0]["output"]
    serve = ["model=" + trained, f"store={shards.parent}", f"port={port}", "max_tokens=4", "engine_cpus=0.1"]
    command = ["--working-dir", ".", "--", "python", "jobs/serve.py", *serve]
    process = submitted_by_ray(head, *command)
    wait_until(lambda: "ServeController" in names_of_processes(head), process)
    out = stop_last_job(head, process)
    assert "finishing what has begun, then shutting down" in out, out
    assert "serving at" not in out
    # A Serve that it had left behind would refuse the next one.
    process = submitted_by_ray(head, *command)
    wait_until(lambda: "serving at" in logs_of_last_job(head), process)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as http:
        reply = http.post("/v1/answers", json={"question": "rain gauges?", "top_k": 2}).raise_for_status().json()
        assert len(reply["sources"]) == 2
        out = stop_last_job(head, process)
        assert "finishing what has begun, then shutting down" in out, out
        with pytest.raises(httpx.TransportError):
            http.get("/healthz")


def write_pipeline(folder: Path, base: Path) -> str:
    """The settings of a whole pipeline of a few steps; returns their file."""
    corpus = write_config(folder / "corpus", base, n_documents=800, rows_per_shard=4, workers=1).corpus
    rows: dict[str, list[dict[str, object]]] = {
        "compression": [{"data_type": "paraphrase", "question": [], "answers": ["rain"], "docs": ["rain on"]}] * 4,
        "joint": [
            {"question": f"rain {i}?", "answer": "x", "doc_ids": ["d0001", "d0002"], "pos_index": [0]} for i in range(4)
        ],
        "questions": [
            {"question_id": f"q{i}", "question": f"rain {i}?", "answer": "x", "positives": [f"d000{i}"]}
            for i in range(4)
        ],
    }
    for name, some in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    each = {"steps": 2, "batch_size": 2}
    run, output = {"workers": 1, "engine": {"kind": "torch"}}, folder / "run" / "trained"
    tree = {
        "run_dir": str(folder / "run"),
        "prepare": {
            **run,
            "model": {"base_model": str(base), "n_memory_tokens": 2, "doc_max_tokens": 24, "lora": {"r": 4}},
            "stages": [{"stage": "compression", "data": str(folder / "compression.jsonl"), **each}],
        },
        "compress": {"corpus": list(corpus), "rows_per_shard": 4, "max_rejects": 2, "workers": 1, "device": "cpu"},
        "joint": {
            **run,
            "stages": [{"stage": "joint", "data": str(folder / "joint.jsonl"), "output": str(output), **each}],
        },
        "evaluate": {"questions": str(folder / "questions.jsonl"), "max_tokens": 2, "device": "cpu"},
    }
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return str(path)


def wait_until(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)


def names_of_processes(head: Head) -> str:
    """Of all that the head runs; Ray's actors carry their class."""
    names = []
    for process in head.process.children(recursive=True):
        with suppress(psutil.Error):
            names.append(" ".join(process.cmdline()))
    return "\n".join(names)
