"""What tests of several folders share: one tiny random base LLM and one tiny model on it."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from pathlib import Path

import pytest

# Before any test imports a library that reads them: no hub, no thread pools that fight over two cores.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Every Ray that a test starts asks for this token; none is written into the home directory.
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
# Where several processes share the tests (pytest -n), each has clusters of its own, and a folder for their sockets.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ["RAY_TMPDIR"] = os.path.join(os.environ.get("RAY_TMPDIR", tempfile.gettempdir()), f"clara-{worker}")
    os.makedirs(os.environ["RAY_TMPDIR"], exist_ok=True)


BROWSER = ("chromium", "chromedriver")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz",
        type=int,
        default=300,
        help="bodies that tests/serve/test_fuzzed.py sends (300), and schemathesis again",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests in a browser out where there is none, and say so."""
    lacking = [name for name in BROWSER if shutil.which(name) is None]
    if lacking and os.environ.get("CI"):
        raise pytest.UsageError(
            f"the page is tested in a browser in CI; there is no {' or '.join(lacking)} on the path"
        )
    if lacking:
        left_out = [item for item in items if item.get_closest_marker("browser")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
        if left_out:
            print(f"\n{len(left_out)} tests of the page left out: there is no {' or '.join(lacking)} on the path")


@pytest.fixture(scope="session")
def tiny_base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama (D 32, 2 layers) with a Metaspace BPE tokenizer, as `AutoModelForCausalLM` reads it."""
    from tiny_models import build_base, build_tokenizer

    path = tmp_path_factory.mktemp("base") / "tiny-llama"
    tokenizer = build_tokenizer("metaspace-first")
    build_base("llama-tied", len(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny_clara_dir(tiny_base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory (M = 3, random adapters) on the tiny base. Shared: read it, never write into it."""
    from clara_dist.config import ClaraConfig, LoraSettings
    from clara_dist.model import ClaraModel
    from tiny_models import randomize_adapters

    config = ClaraConfig(base_model=str(tiny_base_dir), n_memory_tokens=3, doc_max_tokens=24, lora=LoraSettings(r=4))
    clara = ClaraModel.from_base(config)
    randomize_adapters(clara)
    path = tmp_path_factory.mktemp("clara") / "model"
    clara.save_pretrained(path)
    return path
