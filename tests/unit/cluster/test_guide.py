"""What cluster/README.md tells an operator to type names what is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml
from ray.serve.schema import TracingConfig

from clara_dist.cli import app
from kustomized import build

ROOT = Path(__file__).resolve().parents[3]
GUIDE = (ROOT / "cluster" / "README.md").read_text(encoding="utf-8")
LINES = [
    line for block in re.findall(r"^```bash\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE) for line in block.splitlines()
]


@pytest.mark.parametrize("line", [line for line in LINES if re.search(r"\bclara-dist [a-z]", line)])
def test_a_command_exists_with_its_flags(line: str) -> None:
    words = shlex.split(line[line.index("clara-dist ") :], comments=True)[1:]
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    # What stands behind -- goes to the command that is submitted.
    own = words[: words.index("--")] if "--" in words else words
    flags = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in own if word.startswith("--")} <= flags
    assert all((ROOT / word).is_file() for word in words if word.startswith("jobs/"))


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("kubectl apply ")])
def test_a_part_that_is_applied_has_objects(line: str) -> None:
    match = re.fullmatch(r"kubectl apply -k (\S+) -l app\.kubernetes\.io/component=(\w+)", line)
    assert match is not None
    labels = [each["metadata"]["labels"]["app.kubernetes.io/component"] for each in build(ROOT / match[1])]
    assert match[2] in labels


def test_names_of_objects_are_those_of_the_manifests() -> None:
    named = set(re.findall(r"\b(rayjob|raycluster|rayservice)/([\w-]+)", "\n".join(LINES)))
    objects = build(ROOT / "cluster" / "kuberay" / "overlays" / "small")
    assert named <= {(each["kind"].lower(), each["metadata"]["name"]) for each in objects}
    assert len(named) == 5


def test_settings_of_traces_are_serves() -> None:
    (block,) = re.findall(r"^```yaml\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    assert TracingConfig.model_validate(yaml.safe_load(block)["tracing_config"]).enabled


def test_files_exist_and_the_guide_is_short() -> None:
    for path in set(re.findall(r"`([\w/.-]+\.(?:yaml|json|sh|txt)|Dockerfile)`", GUIDE)) - {"config/*.yaml"}:
        places = [
            ROOT / "cluster" / path,
            ROOT / "cluster" / "kuberay" / path,
            ROOT / "cluster/kuberay/overlays" / path,
        ]
        assert any(place.exists() for place in places) or path.startswith("config/"), path
    assert GUIDE.count("\n") <= 220
