"""Memory stays flat when the corpus grows tenfold: the peak of a process of its own, over all that a job reads."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROWS = 6_000
# Of a row here there are 600 bytes, so that a file that is held in memory shows: 32 MB for the further 54,000 rows.
TEXT_BYTES = 570
# What may grow is 24 bytes an id (1.3 MB), and the allocators' rest, measured at 0.1 to 3 MiB.
MAX_GROWTH_MIB = 10

# Plan, scan and duplicates are the driver's and its workers' work, in one process; then each unit is read, as by a
# compressor. VmHWM, since ru_maxrss of a child begins with what its parent had.
PROGRAM = """
import sys
from clara_dist.data.corpus import find_duplicates, plan_units, read_unit, scan_unit
from clara_dist.data.streams import KeptFile

units = plan_units(sys.argv[1], rows_per_unit=500)
kept = KeptFile()
duplicates = find_duplicates([scan_unit(unit, kept=kept) for unit in units])
n = 0
for unit in units:
    losers = duplicates[unit.index].ordinals if unit.index in duplicates else ()
    n += sum(type(item).__name__ == "Document" for item in read_unit(unit, losers, kept=kept))
peak_kib = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(n, peak_kib / 1024)
"""


def write(path: Path, n_rows: int) -> Path:
    rng = random.Random(0)
    # The last row has the first one's id.
    rows = ({"id": str(i % (n_rows - 1)), "text": rng.randbytes(TEXT_BYTES // 2).hex()} for i in range(n_rows))
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=n_rows)  # the hard case: one row group
        return path
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(pa.compress(content, codec="zstd", asbytes=True) if path.suffix == ".zst" else content)
    return path


def peak_mib(path: Path, n_rows: int) -> float:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(write(path, n_rows))], capture_output=True, text=True, check=True
    )
    n_documents, peak = done.stdout.split()
    assert int(n_documents) == n_rows - 1
    return float(peak)


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.zst", "corpus.parquet"])
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, name: str) -> None:
    small, large = peak_mib(tmp_path / name, ROWS), peak_mib(tmp_path / f"10x-{name}", 10 * ROWS)
    assert large - small < MAX_GROWTH_MIB, (small, large)
