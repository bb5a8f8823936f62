"""The client against servers that are none, busy or of another kind."""

from __future__ import annotations

import socket

import httpx
import pytest

from clara_dist.client import Client
from clara_dist.errors import OverloadedError, RequestError


def client_of(response: httpx.Response, sent: list[httpx.Request] | None = None) -> Client:
    def reply(request: httpx.Request) -> httpx.Response:
        if sent is not None:
            sent.append(request)
        return response

    client = Client("http://127.0.0.1:9", api_key="k")
    client._http._transport = httpx.MockTransport(reply)
    return client


def error(status: int, message: str = "m") -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": message, "type": "t", "param": None, "code": None}})


def test_what_is_none_is_left_to_the_server() -> None:
    sent: list[httpx.Request] = []
    with pytest.raises(RequestError):
        client_of(error(400), sent).ask("q", top_k=2)
    assert sent[0].read() == b'{"question":"q","top_k":2}'
    assert sent[0].headers["authorization"] == "Bearer k"
    assert str(sent[0].url) == "http://127.0.0.1:9/v1/answers"


@pytest.mark.parametrize(("status", "kind"), [(429, OverloadedError), (503, OverloadedError), (400, RequestError)])
def test_refusals_carry_the_servers_words(status: int, kind: type[RequestError]) -> None:
    with pytest.raises(RequestError, match=f"the server answered {status}") as caught:
        client_of(error(status, "because")).ask("q")
    assert type(caught.value) is kind
    assert caught.value.got == "because"


@pytest.mark.parametrize("response", [httpx.Response(200, text="<html>"), httpx.Response(502, text="Bad Gateway")])
def test_another_kind_of_server(response: httpx.Response) -> None:
    with pytest.raises(RequestError, match="does not answer as a clara_dist server does"):
        client_of(response).health()


def test_no_server() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}") as client, pytest.raises(RequestError, match="cannot reach a server"):
        client.ask("q")


@pytest.mark.parametrize("url", ["http://[::1", "localhost:8000", ""])
def test_bad_urls(url: str) -> None:
    with pytest.raises(RequestError):
        Client(url).health()
