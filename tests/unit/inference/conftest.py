from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from clara_dist.model.clara import ClaraModel

# What an option needs that is not installed here.
_OPTIONS = {"test_quantized.py": "bitsandbytes", "test_vllm_engine.py": "vllm"}
collect_ignore = [test for test, needed in _OPTIONS.items() if find_spec(needed) is None]


@pytest.fixture
def clara(tiny_clara_dir: Path) -> ClaraModel:
    """A fresh model per test: merging changes it."""
    return ClaraModel.from_pretrained(tiny_clara_dir)


@pytest.fixture(scope="session")
def documents() -> list[tuple[str, str]]:
    """Forty documents of 1 to 12 words; some are longer than ``doc_max_tokens``."""
    words = ["The", "lighthouse", "at", "Cape", "Merrow", "was", "built", "in", "1871", "rain", "gauges", "on"]
    random = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 13, (40,), generator=random).tolist()
    picks = [torch.randint(0, len(words), (n,), generator=random).tolist() for n in lengths]
    return [(words[i % len(words)], " ".join(words[j] for j in pick)) for i, pick in enumerate(picks)]
