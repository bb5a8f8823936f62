"""The machine's copies of remote shards: downloaded once, right, mapped, bounded."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import pickle
import resource
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from clara_dist.errors import CorruptStoreError, StoreError
from clara_dist.store import Manifest, MemoryStore, info, verify
from clara_dist.store.cache import CacheCounts, cache_counts
from clara_dist.store.storage import open_storage
from fault_proxy import FaultProxy
from tiny_stores import build_store, random_memory

Url = Callable[[str], str]
MEMORY = random_memory(6)
ROWS = [2, 2, 2]
SHARD_GET = r"^GET .*/shards/unit"


@pytest.fixture
def url(s3_url: Url) -> str:
    url = s3_url("stores/wiki")
    build_store(url, MEMORY, ROWS)  # type: ignore[arg-type]
    return url


def cached() -> list[Path]:
    return sorted(Path(os.environ["CLARA_CACHE_DIR"]).iterdir())


def test_shards_are_downloaded_once_and_mapped(url: str, proxy: FaultProxy) -> None:
    before = proxy.requests(SHARD_GET)
    assert info(url).manifest.n_documents == 6
    assert proxy.requests(SHARD_GET) == before
    counted = cache_counts()
    store = MemoryStore.open(url)
    assert proxy.requests(SHARD_GET) == before + 3
    assert cache_counts() == CacheCounts(counted.hits, counted.misses + 3)
    assert np.array_equal(store.take_memory(np.arange(6)), MEMORY)
    assert [path.name for path in cached()] == sorted(
        shard.checksum.replace(":", "-") + ".arrow" for shard in store.manifest.shards
    )
    again = pickle.loads(pickle.dumps(store))
    assert proxy.requests(SHARD_GET) == before + 3
    assert cache_counts() == CacheCounts(counted.hits + 3, counted.misses + 3)
    assert (again.url, again.version) == (url, 1)
    assert np.array_equal(again.take_memory(np.arange(6)), MEMORY)


def test_reading_a_remote_store_takes_no_memory_of_its_size(s3_url: Url) -> None:
    memory = np.ones((8192, 16, 64), np.float16)  # 16 MiB
    build_store(s3_url("large"), memory)  # type: ignore[arg-type]
    MemoryStore.open(s3_url("large"))
    before = anonymous_bytes()
    store = MemoryStore.open(s3_url("large"))
    assert float(store.shards[0].memory_SMD.sum(dtype=np.float32)) == memory.size
    assert anonymous_bytes() - before < 4 << 20


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def test_many_openers_download_each_shard_once(url: str, proxy: FaultProxy) -> None:
    before = proxy.requests(SHARD_GET)
    with ThreadPoolExecutor(6) as pool:
        stores = list(pool.map(lambda _: MemoryStore.open(url), range(6)))
    script = "import sys\nfrom clara_dist.store import MemoryStore\nprint(len(MemoryStore.open(sys.argv[1])))"
    done = subprocess.run([sys.executable, "-c", script, url], capture_output=True, text=True, check=True)
    assert [len(store) for store in stores] == [6] * 6
    assert done.stdout == "6\n"
    assert proxy.requests(SHARD_GET) == before + 3
    assert [path.suffix for path in cached()] == [".arrow"] * 3


@pytest.mark.parametrize("fault", ["cut_body", "reset", "slow_down"])
def test_a_download_that_fails_in_passing_is_whole(url: str, proxy: FaultProxy, fault: str) -> None:
    rule = proxy.fail(fault, SHARD_GET, times=3)  # type: ignore[arg-type]
    store = MemoryStore.open(url)
    assert rule.times == 0
    assert np.array_equal(store.take_memory(np.arange(6)), MEMORY)


def test_a_flipped_bit_never_gets_into_the_cache(url: str, proxy: FaultProxy) -> None:
    proxy.fail("corrupt", SHARD_GET)
    with pytest.raises(CorruptStoreError, match="with checksum sha256:"):
        MemoryStore.open(url)
    assert len([path for path in cached() if path.suffix == ".arrow"]) <= 2
    assert len(MemoryStore.open(url)) == 6
    storage = open_storage(url)
    with storage.open("shards/unit-00001.arrow") as source:
        data = bytearray(source.read())
    data[-1] ^= 1
    storage.publish("shards/unit-00001.arrow", bytes(data), exclusive=False)
    # What verify reads is the bucket, whatever the cache holds.
    assert [problem.file for problem in verify(url).problems] == ["shards/unit-00001.arrow"]
    storage.delete("shards/unit-00001.arrow")
    assert [problem.file for problem in verify(url).problems] == ["shards/unit-00001.arrow"]


def test_a_missing_shard_is_named(url: str) -> None:
    open_storage(url).delete("shards/unit-00001.arrow")
    with pytest.raises(CorruptStoreError, match=r"unit-00001\.arrow of the store .* is damaged"):
        MemoryStore.open(url)


def test_a_killed_download_is_begun_again(url: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = Path(os.environ["CLARA_CACHE_DIR"])
    shard = info(url).manifest.shards[0]
    (folder / f"{shard.checksum.replace(':', '-')}.part").write_bytes(b"half of a shard, longer than the shard" * 1000)
    with caplog.at_level(logging.INFO, logger="clara_dist.store.cache"):
        assert np.array_equal(MemoryStore.open(url).take_memory(np.arange(6)), MEMORY)
    assert [path.suffix for path in cached()] == [".arrow"] * 3
    assert "downloading 3 of 3 shards" in caplog.text


def test_the_limit_evicts_what_was_used_longest_ago(
    s3_url: Url, monkeypatch: pytest.MonkeyPatch, proxy: FaultProxy
) -> None:
    sizes: list[int] = []
    for name in ("a", "b", "c"):
        manifest: Manifest = build_store(s3_url(name), random_memory(6, seed=ord(name)), ROWS)  # type: ignore[arg-type]
        sizes.append(manifest.size_bytes)
    monkeypatch.setenv("CLARA_CACHE_MAX_BYTES", str(sizes[0] + sizes[1] + sizes[2] // 2))
    first = MemoryStore.open(s3_url("a"))
    for path in cached():
        os.utime(path, (1, 1))
    MemoryStore.open(s3_url("b"))
    MemoryStore.open(s3_url("c"))
    left = {path.name for path in cached()}
    assert len(left) == 7  # of 9: two of the oldest three made room
    assert sum(shard.checksum.replace(":", "-") + ".arrow" in left for shard in first.manifest.shards) == 1
    # A store that is open does not care.
    assert np.array_equal(first.take_memory(np.arange(6)), random_memory(6, seed=ord("a")))
    before = proxy.requests(SHARD_GET)
    assert np.array_equal(MemoryStore.open(s3_url("a")).take_memory(np.arange(6)), random_memory(6, seed=ord("a")))
    assert proxy.requests(SHARD_GET) == before + 2


def test_a_partial_file_is_evicted_only_if_nobody_writes_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(os.environ["CLARA_CACHE_DIR"])
    (folder / "sha256-dead.part").write_bytes(bytes(1000))
    (folder / "sha256-live.part").write_bytes(bytes(1000))
    monkeypatch.setenv("CLARA_CACHE_MAX_BYTES", str(info(url).manifest.size_bytes))
    with open(folder / "sha256-live.part", "rb") as live:
        fcntl.flock(live, fcntl.LOCK_EX)
        MemoryStore.open(url)
    assert [path.name for path in cached() if path.suffix == ".part"] == ["sha256-live.part"]


def test_a_cache_that_is_too_small_is_told(url: str, monkeypatch: pytest.MonkeyPatch, proxy: FaultProxy) -> None:
    before = proxy.requests(SHARD_GET)
    monkeypatch.setenv("CLARA_CACHE_MAX_BYTES", "1000")
    with pytest.raises(StoreError, match=r"too small for the store's shards\n  got: room for 1000 bytes"):
        MemoryStore.open(url)
    assert proxy.requests(SHARD_GET) == before
    monkeypatch.setenv("CLARA_CACHE_MAX_BYTES", "1 TB")
    with pytest.raises(StoreError, match="no number of bytes"):
        MemoryStore.open(url)


def test_a_full_disk_is_told_and_leaves_nothing(s3_url: Url) -> None:
    build_store(s3_url("large"), random_memory(64, d=256))  # type: ignore[arg-type]
    # The kernel refuses to let files of this process grow: what a full disk is, as far as the code can see.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(StoreError, match="cannot write to the cache") as raised:
            MemoryStore.open(s3_url("large"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.got == os.strerror(errno.EFBIG)
    assert cached() == []


def test_a_cache_that_may_not_be_written_is_told(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("CLARA_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(StoreError, match="cannot write to the cache"):
        MemoryStore.open(url)
