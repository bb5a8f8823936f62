"""One saved tiny base per family."""

from __future__ import annotations

import pytest

from clara_dist.config import ClaraConfig, LoraSettings
from tiny_models import build_base, build_tokenizer


@pytest.fixture(scope="session")
def base_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One saved base per family, tokenizer included."""
    found = {}
    for family in ("mistral", "llama-tied", "qwen3", "phi3", "gemma2", "gemma3"):
        path = tmp_path_factory.mktemp(family) / "base"
        tokenizer = build_tokenizer("bytelevel" if family in ("mistral", "qwen3") else "metaspace-first")
        build_base(family, len(tokenizer)).save_pretrained(path)
        tokenizer.save_pretrained(path)
        found[family] = str(path)
    return found


@pytest.fixture
def config(base_dirs: dict[str, str]) -> ClaraConfig:
    return ClaraConfig(
        base_model=base_dirs["mistral"], n_memory_tokens=3, doc_max_tokens=24, lora=LoraSettings(r=4, dropout=0.3)
    )
