"""Reading a store takes no memory of the memories' size: they are views of the mapped files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from clara_dist.store import MemoryStore, delete
from tiny_stores import build_store

_N, _M, _D = 512, 16, 1024  # 16 MiB
_SIZE_BYTES = _N * _M * _D * 2

_READ = """
import gc, sys, tracemalloc
import numpy as np, pyarrow as pa
from clara_dist.store import MemoryStore

def anonymous():
    gc.collect()
    with open("/proc/self/smaps_rollup") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Anonymous:"))

MemoryStore.open(sys.argv[2]).shards[0].memory_SMD.sum()  # libraries take what they take once
before = anonymous(), pa.total_allocated_bytes()
tracemalloc.start()
store = MemoryStore.open(sys.argv[1])
total = sum(int(shard.memory_SMD.view(np.uint16)[row].max()) for shard in store.shards for row in range(shard.rows))
print(anonymous() - before[0], pa.total_allocated_bytes() - before[1], tracemalloc.get_traced_memory()[1], total)
"""


def mapped_ranges(path: Path) -> list[range]:
    """Addresses at which this process has a file mapped."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == str(path):
            low, high = (int(end, 16) for end in fields[0].split("-"))
            found.append(range(low, high))
    return found


def test_reading_all_memories_allocates_nothing_of_their_size(tmp_path: Path):
    memory = np.ones((_N, _M, _D), np.float16)
    build_store(tmp_path / "store", memory, [300, 212])
    delete(tmp_path / "store", doc_ids=["doc-7"])
    build_store(tmp_path / "other", memory[:1, :1, :8])
    done = subprocess.run(
        [sys.executable, "-c", _READ, tmp_path / "store", tmp_path / "other"],
        capture_output=True,
        text=True,
        check=True,
    )
    anonymous, arrow, python, total = map(int, done.stdout.split())
    assert total == (_N - 1) * 0x3C00
    # The ids of 512 documents, the list of deleted rows, and pages that the allocator keeps.
    assert max(anonymous, arrow, python) < _SIZE_BYTES // 8, (anonymous, arrow, python)


def test_memories_and_norms_are_read_only_views_inside_the_mapped_file(tmp_path: Path):
    build_store(tmp_path, np.ones((8, 2, 8), np.float16), [3, 5])
    before = pa.total_allocated_bytes()
    store = MemoryStore.open(tmp_path)
    for shard in store.shards:
        mapped = mapped_ranges(tmp_path / shard.info.file)
        for view in (shard.memory_SMD, shard.norms_S):
            first = view.ctypes.data
            assert not view.flags.owndata
            assert not view.flags.writeable
            assert any(first in part and first + view.nbytes - 1 in part for part in mapped)
    assert pa.total_allocated_bytes() == before
