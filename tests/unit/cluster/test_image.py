"""What the image is made from."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = (ROOT / "cluster" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
IGNORE = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()


def pins(name: str) -> dict[str, str]:
    """Exact versions of a constraints file and of those that it includes, for this Python; at most one of each."""
    found: dict[str, str] = {}
    for line in (ROOT / "cluster" / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("-c "):
            found.update(pins(line[3:]))
        elif line and not line.startswith("#"):
            requirement = Requirement(line)
            (pin,) = requirement.specifier
            assert pin.operator == "=="
            if requirement.marker is None or requirement.marker.evaluate():
                assert canonicalize_name(requirement.name) not in found, line
                found[canonicalize_name(requirement.name)] = pin.version
    return found


def listed(extra: str | None = None) -> list[Requirement]:
    """The direct dependencies of pyproject.toml, or those of an extra."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pattern = r"^dependencies = \[(.*?)^\]" if extra is None else rf"^{extra} = \[([^\n]*)\]"
    found = re.search(pattern, project, re.DOTALL | re.MULTILINE)
    assert found is not None, extra
    return [Requirement(text) for text in re.findall(r'"([^"]*)"', re.sub(r"  +#.*", "", found[1]))]


def installed_with(requirements: list[Requirement]) -> dict[str, str]:
    """The versions in this environment of these and of all that they need in turn."""
    versions: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(each, extra) for each in requirements for extra in ("", *each.extras)]
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        found = metadata.distribution(name)
        versions[name] = found.version
        for needed in map(Requirement, found.requires or ()):
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                waiting += [(needed, each) for each in ("", *needed.extras)]
    return versions


def test_every_package_of_the_installation_is_pinned_to_the_version_that_is_tested() -> None:
    installed = installed_with([*listed(), *listed("test")])
    assert len(installed) > 200
    pinned = pins("constraints-cuda.txt")
    # A pin without a local label (2.13.0) admits builds with one (2.13.0+cpu).
    wrong = {
        name: f"installed {version}, pinned {pinned.get(name)}"
        for name, version in installed.items()
        if name not in pinned or not SpecifierSet(f"=={pinned[name]}").contains(version, prereleases=True)
    }
    assert wrong == {}, "refresh cluster/constraints-cpu.txt with the command in it, or install with it"


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_target_installs_with_its_pins_and_runs_as_nobody_special(target: str) -> None:
    (stage,) = re.findall(rf"^FROM base AS {target}\n(.*?)(?=^FROM|\Z)", DOCKERFILE, re.DOTALL | re.MULTILINE)
    constraints = f"constraints-{target}.txt"
    extras = re.search(rf'pip install --constraint cluster/{constraints} +"\.\[([\w,]+)\]"', stage)
    assert extras is not None
    instructions = [line for line in stage.strip().splitlines() if line and not line.startswith("#")]
    assert instructions[-1] == "USER 1000:1000"
    for extra in extras[1].split(","):
        for wanted in listed(extra):
            assert wanted.specifier.contains(pins(constraints)[canonicalize_name(wanted.name)])


def test_what_is_copied_passes_the_ignore_file_and_nothing_else_does() -> None:
    assert IGNORE[1] == "*"
    allowed = {line[1:] for line in IGNORE if line.startswith("!")}
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()}
    assert copied == allowed
    assert all(list(ROOT.glob(name)) for name in copied)
