"""The driver killed at ten different points, and stopped in order twice: the same command goes on each time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chaos_corpus import rows_of, temporary_files, undisturbed, write_config
from clara_dist.errors import StoreError
from clara_dist.store import MemoryStore, shard_names

# `clara-dist compress --config CONFIG` that sends itself SIGNAL before or after the NTH call of FUNCTION, or after the
# NTH shard that it hears of. What it keeps of earlier runs goes into the file JOURNAL.
DOOMED = """
import os, sys
from clara_dist.cli import main
from clara_dist.distributed import compress_job, compress_survey
from clara_dist.distributed.compress_workers import ShardCompressor
from clara_dist.store import storage

config, journal, where, function, nth, signum = sys.argv[1:]

def fall():
    os.kill(os.getpid(), int(signum))

class Pool(compress_job.ActorPool):
    def __call__(self, worker, arguments, tasks):
        for heard, item in enumerate(super().__call__(worker, arguments, tasks), 1):
            yield item
            if function == "shards" and worker is ShardCompressor and heard == int(nth):
                fall()

def doomed(call):
    calls = []
    def wrapper(*args, **kwargs):
        calls.append(args)
        mine = len(calls) == int(nth)
        if mine and where == "before":
            fall()
        result = call(*args, **kwargs)
        if mine and where == "after":
            fall()
        return result
    return wrapper

def told(call):
    def wrapper(*args, **kwargs):
        kept = call(*args, **kwargs)
        with open(journal, "a") as sink:
            print(len(kept), file=sink)
        return kept
    return wrapper

compress_job.ActorPool = Pool
compress_job.finished_shards = told(compress_job.finished_shards)
hooked = [module for module in (compress_job, compress_survey, storage) if hasattr(module, function)]
assert hooked or function in ("shards", "nothing"), function
for module in hooked:
    setattr(module, function, doomed(getattr(module, function)))
main(["compress", "--config", config])
"""


@dataclass(frozen=True)
class Fall:
    """Where a driver falls, and how much of the job is done then: shards at least, versions exactly."""

    where: str
    function: str
    nth: int = 1
    n_shards: int = 0
    n_versions: int = 0
    signal: int = signal.SIGKILL


FALLS = [
    Fall("before", "plan_units"),
    Fall("after", "_scan"),
    Fall("before", "_list_duplicates"),
    Fall("after", "finished_shards"),
    Fall("after", "shards", 1, n_shards=1),
    Fall("after", "shards", 4, n_shards=5),
    Fall("after", "shards", 2, n_shards=7, signal=signal.SIGTERM),
    Fall("after", "shards", 5, n_shards=12),
    Fall("after", "shards", 2, n_shards=14, signal=signal.SIGINT),
    Fall("before", "commit", n_shards=31),
    # The manifest is on the disk, but has no name yet; the first link is that of the file which all nodes must see.
    Fall("before", "_link", 2, n_shards=31),
    Fall("after", "commit", n_shards=31, n_versions=1),
]
CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}


def wait_until_released(nodes: Any) -> None:
    """The workers of a driver that is gone are ended by Ray."""
    deadline = time.monotonic() + 60
    while nodes.compressors():
        assert time.monotonic() < deadline, "the workers outlive their driver"
        time.sleep(0.1)


def test_a_driver_that_falls_at_any_point(nodes: Any, tiny_clara_dir: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "job", tiny_clara_dir, n_documents=90, rows_per_shard=3, workers=1)
    expected = undisturbed(config, tmp_path / "undisturbed")
    settings, journal = tmp_path / "compress.yaml", tmp_path / "kept"
    settings.write_text(config.to_yaml(), encoding="utf-8")

    def drive(arguments: list[str]) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "RAY_ADDRESS": nodes.address}
        command = [sys.executable, "-c", DOOMED, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    started = time.monotonic()
    inodes: dict[Path, int] = {}
    for fall in FALLS:
        ended = drive([str(settings), str(journal), fall.where, fall.function, str(fall.nth), str(int(fall.signal))])
        assert ended.returncode == CODES[fall.signal], (fall, ended.stderr)
        if fall.signal != signal.SIGKILL:
            assert f"stopped; what is finished stays in {config.store}: the same command goes on" in ended.stderr
        wait_until_released(nodes)
        assert len(shard_names(config.store)) >= fall.n_shards, fall
        assert {path: path.stat().st_ino for path in inodes} == inodes, "a finished shard was written again"
        inodes = {path: path.stat().st_ino for path in Path(config.store, "shards").glob("[!.]*.arrow")}
        if not fall.n_versions:
            with pytest.raises(StoreError, match="no memory store"):
                MemoryStore.open(config.store)
    last = drive([str(settings), str(journal), "", "nothing", "0", "0"])
    assert last.returncode == 0, last.stderr
    assert "90 documents in 31 shards, complete already" in last.stdout
    assert rows_of(config.store) == expected
    kept = [int(line) for line in journal.read_text().splitlines()]
    figures = {
        "falls": len(FALLS),
        "shards kept by each run that came so far": kept,
        "temporary files left": len(temporary_files(config.store)),
        "seconds": round(time.monotonic() - started, 1),
    }
    (tmp_path / "figures.json").write_text(json.dumps(figures), encoding="utf-8")
    print(figures)
    assert kept == sorted(kept)
    assert kept[0] == 0
    assert kept[-1] == 31
    assert all(found >= fall.n_shards for found, fall in zip(kept[1:], FALLS[3:], strict=False))
