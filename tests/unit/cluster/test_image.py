"""What the image is made from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = (ROOT / "cluster" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
IGNORE = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()


def pins(name: str) -> dict[str, str]:
    """Exact versions of a constraints file and of those that it includes."""
    found = {}
    for line in (ROOT / "cluster" / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("-c "):
            found.update(pins(line[3:]))
        elif line and not line.startswith("#"):
            requirement = Requirement(line)
            (pin,) = requirement.specifier
            assert pin.operator == "=="
            found[requirement.name.lower()] = pin.version
    return found


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_target_installs_with_its_pins_and_runs_as_nobody_special(target: str) -> None:
    (stage,) = re.findall(rf"^FROM base AS {target}\n(.*?)(?=^FROM|\Z)", DOCKERFILE, re.DOTALL | re.MULTILINE)
    constraints = f"constraints-{target}.txt"
    extras = re.search(rf'pip install --constraint cluster/{constraints} +"\.\[([\w,]+)\]"', stage)
    assert extras is not None
    instructions = [line for line in stage.strip().splitlines() if line and not line.startswith("#")]
    assert instructions[-1] == "USER 1000:1000"
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in extras[1].split(","):
        listed = re.search(rf"^{extra} = \[(.*?)\]", project, re.MULTILINE)
        assert listed is not None
        for requirement in re.findall(r'"(.*?)"', listed[1]):
            wanted = Requirement(requirement)
            assert wanted.specifier.contains(pins(constraints)[wanted.name.lower()])


def test_what_is_copied_passes_the_ignore_file_and_nothing_else_does() -> None:
    assert IGNORE[1] == "*"
    allowed = {line[1:] for line in IGNORE if line.startswith("!")}
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()}
    assert copied == allowed
    assert all(list(ROOT.glob(name)) for name in copied)
