"""The clusters of `ray up`, by Ray's own schema."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from clara_dist.distributed.serve_app import SERVE_ENVIRONMENT

CLUSTER = Path(__file__).resolve().parents[3] / "cluster"


@pytest.fixture(params=["aws", "gcp"])
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(yaml.safe_load((CLUSTER / f"{request.param}.yaml").read_text(encoding="utf-8")))


def test_ray_takes_it(config: dict[str, Any]) -> None:
    prepared = prepare_config(config)
    validate_config(prepared)
    assert set(prepared["available_node_types"]) == {"head", "gpu", "spot"}
    with pytest.raises(ValidationError):
        validate_config({**prepared, "idle_timeout": 5})


def test_the_token_comes_as_a_file_and_nothing_listens_to_strangers(config: dict[str, Any]) -> None:
    options = config["docker"]["run_options"]
    assert "--env RAY_AUTH_MODE=token" in options
    assert {f"--env {name}={value}" for name, value in SERVE_ENVIRONMENT.items()} < set(options)
    (path,) = [re.fullmatch(r"--env RAY_AUTH_TOKEN_PATH=(\S+)", option) for option in options if "TOKEN_PATH" in option]
    assert path is not None
    assert config["file_mounts"] == {path[1]: "~/.ray/auth_token"}
    assert config["provider"]["use_internal_ips"]
    (start,) = [command for command in config["head_start_ray_commands"] if "--head" in command]
    assert "--dashboard-host=127.0.0.1" in start
    assert "--metrics-export-port=8080" in start
