"""The builder and its checks, without a cluster."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from pydantic import ValidationError
from ray import serve

from clara_dist.config.serve import ServeConfig, is_loopback
from clara_dist.distributed.serve_app import build_app, serving
from clara_dist.errors import ConfigError


def test_builder_takes_the_args_of_a_serve_yaml() -> None:
    app = build_app({"model": "m", "store": "s3://bucket/store", "device": "cpu", "limits": {"max_top_k": 5}})
    assert isinstance(app, serve.Application)
    with pytest.raises(ValidationError, match="storr"):
        build_app({"model": "m", "storr": "s"})


def test_nothing_starts_where_it_cannot_end_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLARA_API_KEY", raising=False)
    config = ServeConfig(model=str(tmp_path), store=str(tmp_path))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = config.model_copy(update={"port": taken.getsockname()[1]})
        with pytest.raises(ConfigError, match="cannot listen on"), serving(busy):
            raise AssertionError("unreachable")
    wrong = {
        "needs an API key": config.model_copy(update={"host": "0.0.0.0"}),
        "there is no model": config.model_copy(update={"model": str(tmp_path / "nowhere")}),
        "there is no store": config.model_copy(update={"store": str(tmp_path / "nowhere")}),
    }
    for message, bad in wrong.items():
        with pytest.raises(ConfigError, match=message), serving(bad):
            raise AssertionError("unreachable")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.com", "localhost.example.com", ""])
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)
