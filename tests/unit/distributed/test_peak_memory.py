"""The watch sees this process and what it started."""

from __future__ import annotations

import subprocess
import sys

from clara_dist.distributed.peak_memory import PeakMemory

MIB = 2**20


def test_sees_memory_of_a_grandchild() -> None:
    hold = f"block = bytearray(b'x' * {200 * MIB}); print('ready', flush=True); input()"
    start = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {hold!r}]))"
    with PeakMemory(every_s=0.05) as before:
        pass
    child = subprocess.Popen([sys.executable, "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    with PeakMemory(every_s=0.05) as during:
        pass
    child.communicate("\n")
    # The block, and two small interpreters that share most of their pages.
    assert 200 * MIB < during.peak_bytes - before.peak_bytes < 280 * MIB
