"""What a submission sends; tests/ray/test_jobs.py sends it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from clara_dist.distributed.submit import COMMANDS, Submission, connect
from clara_dist.errors import ConfigError, StoreError

REPOSITORY = Path(__file__).parents[3]


def test_every_job_of_the_folder_can_be_submitted() -> None:
    assert {path.stem for path in (REPOSITORY / "jobs").glob("*.py")} - {"bootstrap", "stop"} == COMMANDS.keys()


def test_arguments_arrive_as_they_were_given() -> None:
    args = ("--config", "my file.yaml", "candidates.where={year: [1870, 1871]}", "x=$(rm)")
    entrypoint = Submission("evaluate", args).entrypoint
    assert shlex.split(entrypoint) == ["python", "-m", "clara_dist.cli", "eval", *args]


def test_what_travels_with_a_job(tmp_path: Path) -> None:
    environment = Submission("train", working_dir=str(tmp_path), stop_wait_s=60).runtime_env()
    assert environment["working_dir"] == str(tmp_path)
    assert environment["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "60"}, "and no secret of this process"
    assert {".git", "*.safetensors", "*.arrow", ".env", "*.key"} <= set(environment["excludes"])
    assert "pip" not in environment


def test_pins_are_installed_from_the_working_directory_with_the_package(tmp_path: Path) -> None:
    (tmp_path / "pins.txt").write_text("torch==2.13.0\n", encoding="utf-8")
    environment = Submission("train", working_dir=str(tmp_path), constraints="pins.txt").runtime_env()
    unpacked = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"
    assert environment["pip"] == [f"-c {unpacked}/pins.txt", unpacked]
    with pytest.raises(ConfigError, match="not in the working directory"):
        Submission("train", working_dir=str(tmp_path), constraints="absent.txt").runtime_env()
    with pytest.raises(ConfigError, match="no working directory"):
        Submission("train", working_dir=str(tmp_path / "absent")).runtime_env()


def test_an_address_with_credentials_is_refused_without_repeating_them() -> None:
    with pytest.raises(StoreError, match="carries credentials") as refused:
        connect("http://user:hush@127.0.0.1:8265")
    assert "hush" not in str(refused.value)
