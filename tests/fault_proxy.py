"""A proxy in front of an S3 server that lets requests fail the way networks and busy services let them fail."""

from __future__ import annotations

import http.client
import itertools
import random
import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Fault = Literal[
    "lost_answer", "slow_down", "reset", "cut_body", "server_error", "reset_after", "corrupt", "forbidden", "hang"
]
_INSTEAD = ("slow_down", "server_error", "forbidden", "reset", "hang")
_ANSWERS = {"slow_down": (503, b"SlowDown"), "forbidden": (403, b"AccessDenied")}
_ERROR_BODY = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>injected</Message></Error>"


@dataclass
class Rule:
    """Let the next ``times`` requests fail whose "METHOD /path" matches.

    ``lost_answer`` answers 500 after the server has done the work, ``reset_after`` drops the connection then.
    ``slow_down`` (503), ``server_error`` (500), ``forbidden`` (403), ``reset`` and ``hang`` fail before it.
    ``cut_body`` ends the answer halfway, ``corrupt`` flips a bit of it. ``before`` runs first.
    """

    fault: Fault
    request: str
    times: int = 1
    before: Callable[[], None] | None = None


class FaultProxy:
    """Forwards HTTP to ``target_port`` on loopback; `rules` say what goes wrong, `log` what was asked.

    `choose`, if set, is asked for the fault of every request that no rule takes.
    """

    def __init__(self, target_port: int) -> None:
        self.rules: list[Rule] = []
        self.choose: Callable[[str], Fault | None] | None = None
        self.log: list[str] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, target_port))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fail(self, fault: Fault, request: str, times: int = 1, before: Callable[[], None] | None = None) -> Rule:
        """Add a rule; returns it, so that a test can see that its ``times`` went down to 0."""
        self.rules.append(Rule(fault, request, times, before))
        return self.rules[-1]

    def requests(self, pattern: str) -> int:
        """How many requests matched so far."""
        return sum(re.search(pattern, line) is not None for line in self.log)

    def next_fault(self, line: str) -> tuple[Fault | None, Callable[[], None] | None]:
        with self._lock:
            self.log.append(line)
            for rule in self.rules:
                if rule.times > 0 and re.search(rule.request, line):
                    rule.times -= 1
                    return rule.fault, rule.before
            return (self.choose(line) if self.choose else None), None


def at_random(seed: int) -> Callable[[str], Fault | None]:
    """Every third put stores the object and answers 500; reads fail at random in all the ways there are."""
    generator = random.Random(seed)
    puts = itertools.count(1)

    def choose(line: str) -> Fault | None:
        if line.startswith("PUT"):
            return None if next(puts) % 3 else generator.choice(["lost_answer", "lost_answer", "reset_after"])
        faults: list[Fault] = ["slow_down", "reset", "cut_body" if line.startswith("GET") else "server_error"]
        return generator.choice(faults) if generator.random() < 0.15 else None

    return choose


def _as_s3(headers: dict[str, str]) -> dict[str, str]:
    """Says in S3's words what GCS's interface, which is otherwise that of S3, has words of its own for."""
    said = {name.lower(): value for name, value in headers.items()}
    if not said.get("authorization", "").startswith("AWS4"):
        said["authorization"] = "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request"
    if said.get("x-goog-if-generation-match") == "0":
        said["if-none-match"] = "*"
    return said


def _handler(proxy: FaultProxy, target_port: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            """The tests read `FaultProxy.log`."""

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault, before = proxy.next_fault(f"{self.command} {self.path}")
            if before is not None:
                before()
            if fault in _INSTEAD:
                self.fail(fault)
                return
            upstream = http.client.HTTPConnection("127.0.0.1", target_port, timeout=60)
            upstream.request(self.command, self.path, body, _as_s3(dict(self.headers.items())))
            answer = upstream.getresponse()
            data = answer.read()
            upstream.close()
            if fault in ("lost_answer", "reset_after"):
                self.fail(fault)
                return
            if fault == "corrupt" and data:
                data = data[:-1] + bytes([data[-1] ^ 1])
            self.answer(answer, data, cut=fault == "cut_body")

        def answer(self, answer: http.client.HTTPResponse, data: bytes, *, cut: bool) -> None:
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length", str(len(data))) if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if cut else data)
            if cut:
                self.drop()

        def fail(self, fault: Fault) -> None:
            if fault == "hang":
                self.connection.recv(1)  # until the client has had enough, and closes
            if fault in ("reset", "reset_after", "hang"):
                self.drop()
                return
            status, code = _ANSWERS.get(fault, (500, b"InternalError"))
            data = b"" if self.command == "HEAD" else _ERROR_BODY % code
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def drop(self) -> None:
            self.close_connection = True
            with suppress(OSError):  # the client was faster
                self.connection.shutdown(socket.SHUT_RDWR)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

    return Handler
