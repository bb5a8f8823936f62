from __future__ import annotations

import sys
from pathlib import Path

import pytest

from clara_dist.config.serve import ServeConfig
from clara_dist.distributed.serve_model import ServedModel
from clara_dist.errors import ModelError


def test_an_engine_that_is_not_installed_says_what_to_install(
    tiny_clara_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ModelError, match="pip install 'vllm"):
        ServedModel(ServeConfig(model=str(tiny_clara_dir), store="unused", engine="vllm"), "cpu")


def test_a_quantised_base_is_not_served_by_vllm() -> None:
    with pytest.raises(ValueError, match="quantised base"):
        ServeConfig(model="m", store="s", engine="vllm", quantization="8bit")
