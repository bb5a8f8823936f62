"""A corpus compressed into a bucket by real Ray workers, through an S3 that fails at random, and then used."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from clara_dist.cli import app
from clara_dist.config.compress import CompressConfig
from clara_dist.data.corpus import plan_units
from clara_dist.distributed.actor_pool import Mapper, map_serially
from clara_dist.distributed.compress_job import CompressReport, run
from clara_dist.distributed.compress_workers import identify_model
from clara_dist.distributed.visibility import missing_paths
from clara_dist.errors import StoreError
from clara_dist.inference.answering import LocalPipeline
from clara_dist.model.clara import ClaraModel
from clara_dist.retrieval.opening import open_bank
from clara_dist.store import MemoryStore, files
from clara_dist.store.storage import open_storage
from fault_proxy import FaultProxy, at_random

Url = Callable[[str], str]
WORDS = ["rain", "gauges", "on", "the", "island", "are", "emptied", "at", "nine", "lighthouse", "Cape"]
# A Ray of its own: workers get the credentials from the environment that it starts in.
JOB = """
import sys
from clara_dist.config.compress import CompressConfig
from clara_dist.distributed.compress_job import compress

print(compress(CompressConfig.model_validate_json(sys.argv[1]), address="local", num_cpus=2))
"""


def corpus(folder: Path) -> str:
    """200 good documents and a bad row."""
    lines = [
        json.dumps({"doc_id": f"d{i:03}", "text": " ".join(WORDS[i * j % 11] for j in range(1, i % 5 + 2))})
        for i in range(200)
    ]
    path = folder / "corpus.jsonl"
    path.write_text("\n".join([*lines[:50], "{broken", *lines[50:]]), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def quiet(tiny_clara_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> CompressConfig:
    """A job that was left in peace, on a disk."""
    folder = tmp_path_factory.mktemp("quiet")
    config = CompressConfig(
        corpus=(corpus(folder),), model=str(tiny_clara_dir), store=str(folder / "store"), rows_per_shard=20
    )
    compress(config)
    return config


def compress(config: CompressConfig, compress_on: Mapper = map_serially) -> CompressReport:
    units = plan_units(config.corpus, rows_per_unit=20)
    return run(config, units, scan_on=map_serially, compress_on=compress_on, identify=lambda: identify_model(config))


def assert_same(url: str, store: str) -> None:
    """The same documents, in the same order, with the same memories bit for bit."""
    local, remote = MemoryStore.open(store), MemoryStore.open(url)
    rows = np.arange(200)
    assert remote.doc_ids(rows) == local.doc_ids(rows) == [f"d{i:03}" for i in range(200)]
    assert remote.documents(rows) == local.documents(rows)
    assert np.array_equal(remote.take_memory(rows), local.take_memory(rows))
    assert [shard.checksum for shard in remote.manifest.shards] == [shard.checksum for shard in local.manifest.shards]
    storage = open_storage(url)
    assert (len(storage.list_files("shards")), storage.list_files("manifests")) == (11, ["00000001.json"])


class Dies(Exception):
    """Stands for the end of the process."""


def dies_after(n: int) -> Mapper:
    def mapper(worker: Callable[..., Any], arguments: Mapping[str, Any], tasks: Sequence[Any]) -> Iterator[Any]:
        for index, result in map_serially(worker, arguments, tasks):
            if index == n:
                raise Dies
            yield index, result

    return mapper


def test_a_job_that_dies_goes_on_from_what_is_in_the_bucket(
    s3_url: Url, proxy: FaultProxy, quiet: CompressConfig
) -> None:
    config = quiet.model_copy(update={"store": s3_url("store")})
    proxy.choose = at_random(seed=5)
    with pytest.raises(Dies):
        compress(config, dies_after(4))
    with pytest.raises(StoreError, match="no memory store"):
        MemoryStore.open(config.store)
    assert compress(config).n_kept == 99  # five shards of 20 rows, of which one row is bad
    assert compress(config).was_complete
    proxy.choose = None
    assert_same(config.store, quiet.store)


def test_a_job_whose_service_fails_equals_one_that_is_left_in_peace(
    s3_url: Url, proxy: FaultProxy, quiet: CompressConfig
) -> None:
    url = s3_url("stores/wiki")
    files.write(s3_url("corpora/2026/part.jsonl"), Path(quiet.corpus[0]).read_bytes())
    noisy = quiet.model_copy(update={"store": url, "corpus": (s3_url("corpora/*/*.jsonl"),)})
    proxy.choose = at_random(seed=3)
    done = subprocess.run(
        [sys.executable, "-c", JOB, noisy.model_dump_json()], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    proxy.choose = None
    n_puts = proxy.requests(r"^PUT .*/shards/")
    assert n_puts > 11, "no put was retried"

    assert_same(url, quiet.store)
    with files.open_input(noisy.rejects_path) as rejects:
        assert [json.loads(line)["line"] for line in rejects] == [51]

    assert f"store {url}, version 1: 200 documents in 11 shards" in done.stdout
    assert "test-secret" not in done.stdout + done.stderr + json.dumps(dict(MemoryStore.open(url).manifest.writer))
    use(url, quiet.store, Path(quiet.model))


def use(url: str, same: str, model: Path) -> None:
    """Look after the store, search it and train on it; ``same`` is its twin on a disk."""
    for command in ("info", "verify"):
        result = CliRunner().invoke(app, ["store", command, url])
        assert result.exit_code == 0, result.output
        assert "200" in result.output
    clara = ClaraModel.from_pretrained(model)
    questions = ["rain on the island", "the lighthouse at nine"]
    here, there = (LocalPipeline(clara, MemoryStore.open(store)).answer(questions, 3, 4) for store in (same, url))
    assert [(a.text, [s.doc_id for s in a.sources]) for a in there] == [
        (a.text, [s.doc_id for s in a.sources]) for a in here
    ]
    fields = clara.fingerprint_fields()
    here_bank, there_bank = (open_bank(store, fields).gather(np.array([[5, 199]])) for store in (same, url))
    assert np.array_equal(there_bank.numpy(), here_bank.numpy())


def test_a_node_says_which_bucket_it_cannot_use(s3_url: Url, proxy: FaultProxy) -> None:
    url = s3_url("store")
    open_storage(url).publish(".marker", b"", exclusive=True)
    files.write(s3_url("corpus/a.jsonl"), b"{}")
    assert missing_paths([s3_url("corpus/a.jsonl"), s3_url("corpus")], (url, ".marker")) == []
    (missing,) = missing_paths([s3_url("corpus/b.jsonl")], None)
    assert missing.endswith(f"no {s3_url('corpus/b.jsonl')}")
    (other,) = missing_paths([], (s3_url("another"), ".marker"))
    assert other.endswith("is not the driver's")
    proxy.choose = lambda line: "forbidden" if line.startswith("PUT") else None
    (refused,) = missing_paths([], (url, ".marker"))
    assert "cannot write s3://bucket" in refused
    assert "403" in refused
