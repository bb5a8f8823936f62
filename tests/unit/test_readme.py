"""What the README tells a reader to type exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from clara_dist.cli import app
from clara_dist.config import ClaraConfig, TrainConfig
from clara_dist.config.compress import CompressConfig
from clara_dist.config.pipeline import PipelineConfig
from clara_dist.config.serve import ServeConfig

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# `compression_rate` is another way to give n_memory_tokens.
SETTINGS = {
    "init": {*ClaraConfig.model_fields, "compression_rate"},
    "compress": set(CompressConfig.model_fields),
    "serve": {*ServeConfig.model_fields},
    "train": {*TrainConfig.model_fields, *PipelineConfig.model_fields},
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def command_lines() -> list[str]:
    """Calls of the command line, also through the entry points in ``jobs``, as ``clara-dist ...``."""
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    lines = [re.sub(r"^ray job submit .* -- python jobs/(\w+)\.py", r"clara-dist \1", line) for line in lines]
    # What is submitted is a command of its own.
    lines = [
        part
        for line in lines
        for part in re.sub(r"^(clara-dist submit (\w+).*) -- ", r"\1\nclara-dist \2 ", line).split("\n")
    ]
    return [line for line in lines if line.startswith("clara-dist ")]


@pytest.mark.parametrize("line", command_lines())
def test_command_exists_with_its_flags(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    command = typer.main.get_command(app)
    name = ""
    while hasattr(command, "commands"):
        name = words.pop(0)
        command = command.commands[name]
    flags = {flag: parameter for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= flags.keys()
    values = {i + 1 for i, word in enumerate(words) if word in flags and not flags[word].is_flag}
    free = [word for i, word in enumerate(words) if i not in values and not word.startswith("-")]
    settings = {re.split(r"[.=]", word)[0] for word in free if "=" in word}
    assert settings <= SETTINGS.get(name, set())


@pytest.mark.parametrize("block", blocks("yaml"))
def test_configuration_is_valid(block: str) -> None:
    TrainConfig.model_validate(yaml.safe_load(block))


def test_there_is_something_to_check() -> None:
    assert len(command_lines()) >= 10
    assert len(blocks("yaml")) == 1


def test_paths_exist() -> None:
    for path in set(re.findall(r"(?:jobs|cluster|tests|clara_dist)/[\w./-]*\w", README)):
        assert (ROOT / path).exists(), path
