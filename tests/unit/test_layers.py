"""Who may import whom (the package's layers), held by an AST walk and by fresh interpreters."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "clara_dist"

# layer -> the layers that it may import, besides itself, `errors` and `config`
INTERNAL = {
    "errors": set(),
    "config": set(),
    "core": set(),
    "store": set(),
    "client": set(),
    "model": {"core"},
    "data": {"store"},
    "retrieval": {"core", "store"},
    "training": {"model", "data", "retrieval", "core", "store"},  # store: run directories in object stores
    "inference": {"model", "retrieval", "store", "core"},
    "evaluation": {"inference", "model", "retrieval", "data", "core"},
    "planning": {"data"},
    "page": set(),
    "integrations": {"client"},
    "synthesis": {"data"},
}
ANYTHING = {"distributed", "cli", "bench"}
# layer -> the only packages outside the standard library; a layer that is not named may use any but ray
EXTERNAL = {
    "errors": set(),
    "config": {"pydantic", "yaml"},
    "core": {"torch"},
    "store": {"lark", "numpy", "obstore", "pyarrow"},
    "client": {"httpx"},
}
RAY_USERS = {"distributed"}


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(source: str) -> list[str]:
    """Every module named by an import, wherever in the file: a lazy import is a dependency too."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "clara_dist":
            names += [f"clara_dist.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append("." * node.level + (node.module or ""))
    return names


def violations(layer: str, source: str) -> list[str]:
    wrong = []
    for name in imported_modules(source):
        top = name.partition(".")[0]
        if top == "clara_dist":
            target = ([*name.split("."), ""])[1]
            fine = layer in ANYTHING or target in {layer, "errors", "config", "", "__version__"}
            if not fine and target not in INTERNAL[layer]:
                wrong.append(f"{layer} must not import clara_dist.{target}")
        elif top == "ray" and layer not in RAY_USERS:
            wrong.append(f"{layer} must not import ray")
        elif layer in EXTERNAL and top not in sys.stdlib_module_names and top not in EXTERNAL[layer]:
            wrong.append(f"{layer} must not import {top}")
    return wrong


def package_files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def test_every_module_is_in_a_known_layer() -> None:
    assert {layer_of(path) for path in package_files()} <= INTERNAL.keys() | ANYTHING


@pytest.mark.parametrize("path", package_files(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_module_keeps_to_its_layer(path: Path) -> None:
    assert violations(layer_of(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("layer", "source", "message"),
    [
        ("core", "import numpy", "core must not import numpy"),
        ("core", "from clara_dist.model import clara", "core must not import clara_dist.model"),
        ("store", "def f():\n    from clara_dist import core", "store must not import clara_dist.core"),
        ("training", "import ray.train", "training must not import ray"),
        ("cli", "from ray import serve", "cli must not import ray"),
        (
            "evaluation",
            "from clara_dist.distributed.session import connect",
            "evaluation must not import clara_dist.distributed",
        ),
    ],
)
def test_the_walk_sees_a_forbidden_import(layer: str, source: str, message: str) -> None:
    assert violations(layer, source) == [message]


def test_bootstrap_needs_nothing_but_python() -> None:
    names = imported_modules((ROOT / "jobs" / "bootstrap.py").read_text(encoding="utf-8"))
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


def modules_after(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after a statement."""
    script = f"{statement}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_ray_stays_out_of_everything_but_distributed() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in package_files()
        if layer_of(path) not in RAY_USERS
    ]
    loaded = modules_after("\n".join(f"import {module}" for module in modules))
    assert "torch" in loaded
    assert "ray" not in loaded


@pytest.mark.parametrize("module", ["clara_dist", "clara_dist.errors", "clara_dist.config", "clara_dist.cli"])
def test_light_modules_stay_light(module: str) -> None:
    heavy = {"torch", "ray", "transformers", "deepspeed", "pyarrow", "numpy", "fastapi", "httpx"}
    assert modules_after(f"import {module}") & heavy == set()


def test_store_needs_no_torch_and_on_a_disk_no_client() -> None:
    loaded = modules_after("from clara_dist.store import files, reader, storage, writer; storage.open_storage('x')")
    assert loaded & {"torch", "obstore"} == set()
