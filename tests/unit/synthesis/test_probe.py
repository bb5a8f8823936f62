from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from clara_dist.config.synthesize import EndpointConfig
from clara_dist.errors import EndpointError
from clara_dist.synthesis.probe import require_endpoint


class Models(BaseHTTPRequestHandler):
    """Lists its models for one key; a key of another tenant meets a path that is not there."""

    def do_GET(self) -> None:
        assert self.path == "/v1/models"
        statuses = {"Bearer good": 200, "Bearer forbidden": 403, "Bearer listless": 404}
        self.send_response(statuses.get(self.headers.get("Authorization", ""), 401))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the tests' output is theirs."""


@pytest.fixture
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Models)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("key", ["good", "listless"])
def test_endpoints_that_may_be_worked_with(url: str, key: str) -> None:
    require_endpoint(EndpointConfig(base_url=url, model="m"), {"OPENAI_API_KEY": key})


@pytest.mark.parametrize(("key", "message"), [("bad-one", "refuses"), ("forbidden", "refuses"), ("", "wants an API")])
def test_a_key_that_is_refused_is_told_before_anything_starts(url: str, key: str, message: str) -> None:
    with pytest.raises(EndpointError, match=message) as caught:
        require_endpoint(EndpointConfig(base_url=url, model="m", api_key_env="MY_KEY"), {"MY_KEY": key})
    assert "MY_KEY" in str(caught.value)
    assert not key or key not in str(caught.value)


def test_nobody_is_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        config = EndpointConfig(base_url=f"http://127.0.0.1:{taken.getsockname()[1]}/v1", model="m")
        with pytest.raises(EndpointError, match="cannot be reached"):
            require_endpoint(config, {})
