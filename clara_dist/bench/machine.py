"""What a measurement was taken on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from clara_dist import __version__

_PACKAGES = ("torch", "transformers", "peft", "ray", "pyarrow", "tokenizers")
_PEAK_SECONDS = 1.0


def describe_machine(device: str) -> dict[str, Any]:
    """Hardware, versions, commit, command and load."""
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return {
        "command": " ".join(["clara-dist", *sys.argv[1:]]),
        "commit": _commit(),
        "clara_dist": __version__,
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in _PACKAGES},
        "cpu": _cpu_name(),
        "n_cpus": os.cpu_count(),
        "gpu": gpu,
        "load_average": os.getloadavg(),  # of the minute before: above the processes here, others were at work
    }


def matmul_peak(device: str, dtype: torch.dtype, n_threads: int | None = None) -> float:
    """Operations a second of a large matrix product, the best of several: what no model can exceed here."""
    size = 8192 if device == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads or before)
    best, end = 0.0, time.perf_counter() + _PEAK_SECONDS
    while time.perf_counter() < end:
        synchronize(device)
        started = time.perf_counter()
        torch.mm(left, right)
        synchronize(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    torch.set_num_threads(before)
    return best


def synchronize(device: str) -> None:
    """Wait for what the device still computes."""
    if device == "cuda":
        torch.cuda.synchronize()


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None  # installed, or no git
    return done.stdout.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
