"""An OpenAI-compatible endpoint on loopback, whose answers and failures a test decides.

`serving(behaviour)` starts one; a behaviour says what to do with each request: `write_well`, a writer that reads its
prompt and answers as it should (a sentence is a fact), `scripted(...)`, or any function of a `Call`. The stub counts
what it sent, so that a client's accounting can be compared with it.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Kind = Literal["simple", "complex", "paraphrase", "check", "other"]


@dataclass(frozen=True)
class Call:
    """A request: its number from 0, its body and its headers (names in lower case)."""

    index: int
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def prompt(self) -> str:
        return "\n".join(message["content"] for message in self.body["messages"])

    @property
    def kind(self) -> Kind:
        marks: dict[Kind, str] = {"check": '{"missing"', "paraphrase": '{"paraphrases"', "complex": "complex question"}
        marks["simple"] = "simple question"
        return next((kind for kind, mark in marks.items() if mark in self.prompt), "other")

    @property
    def document(self) -> str:
        return _between(self.prompt, "document")

    @property
    def asked_again(self) -> bool:
        return "could not be used" in self.prompt


@dataclass(frozen=True)
class Reply:
    """What the stub does. With a ``text`` it is a chat completion, else the ``body`` as it is."""

    text: str | None = None
    status: int = 200
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    finish_reason: str = "stop"
    with_usage: bool = True
    act: Literal["answer", "hang", "reset"] = "answer"


Behaviour = Callable[[Call], Reply]

HANG = Reply(act="hang")
RESET = Reply(act="reset")
SERVER_ERROR = Reply(status=500, body='{"error": {"message": "boom", "type": "server_error"}}')


def rate_limited(retry_after: str | None = None, *, code: str = "rate_limit_exceeded") -> Reply:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return Reply(status=429, headers=headers, body=json.dumps({"error": {"message": "slow down", "code": code}}))


def refusal(status: int, message: str = "no") -> Reply:
    return Reply(status=status, body=json.dumps({"error": {"message": message}}))


def scripted(*replies: Reply, then: Behaviour | None = None) -> Behaviour:
    """These replies in order, whatever is asked; from then on ``then``, which is `write_well` by default."""

    def behave(call: Call) -> Reply:
        return replies[call.index] if call.index < len(replies) else (then or write_well)(call)

    return behave


def sentences(document: str) -> list[str]:
    """The facts of a document, as the stub's writer sees them."""
    return [found.strip() for found in re.findall(r"[^.]+\.", document)]


def write_well(call: Call) -> Reply:
    """Cover every sentence at once."""
    return write(call, forget=0)


def write(call: Call, *, forget: int) -> Reply:
    """Answer a prompt of the package; what is written first leaves out the last ``forget`` sentences."""
    facts = sentences(call.document)
    wanted = re.findall(r"^- (.*\.)$", call.prompt.rpartition("following facts")[2], re.MULTILINE)
    rewriting = "following facts" in call.prompt
    if call.kind == "check":
        material = _between(call.prompt, "material")
        return Reply(json.dumps({"missing": [fact for fact in facts if fact not in material]}))
    if call.kind == "paraphrase":
        told = facts if rewriting else facts[: len(facts) - forget]
        exactly = int(re.findall(r"exactly (\d+)", call.prompt)[-1])
        return Reply(json.dumps({"paraphrases": [f"In other words ({i}): " + " ".join(told) for i in range(exactly)]}))
    at_most = int(re.findall(r"at most (\d+)", call.prompt)[-1])
    told = (wanted if rewriting else facts[: len(facts) - forget])[:at_most]
    pairs = [{"question": f"Which {call.kind} fact is {fact[:-1]}?", "answer": fact} for fact in told]
    return Reply(json.dumps({"pairs": pairs}))


def _between(text: str, tag: str) -> str:
    return text.partition(f"<{tag}>\n")[2].partition(f"\n</{tag}>")[0]


@dataclass
class Stub:
    """A running endpoint, and what it saw and sent.

    ``completions`` are the chat completions among its answers. ``prompt_tokens`` and ``completion_tokens`` are sums
    over those that said them; a token is a word.
    """

    url: str
    calls: list[Call] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    acts: Counter[str] = field(default_factory=Counter)
    completions: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    without_usage: int = 0
    most_at_a_time: int = 0
    under_way: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    closing: threading.Event = field(default_factory=threading.Event, repr=False)

    def kinds(self) -> Counter[Kind]:
        return Counter(call.kind for call in self.calls)


@contextmanager
def serving(behaviour: Behaviour = write_well) -> Iterator[Stub]:
    """An endpoint while the block runs; ``stub.url`` is its base URL, with ``/v1``."""
    stub = Stub("")

    class Handler(_Handler):
        pass

    Handler.stub, Handler.behaviour = stub, staticmethod(behaviour)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stub.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        stub.closing.set()
        server.shutdown()
        thread.join()
        server.socket.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stub: Stub
    behaviour: Behaviour

    def do_POST(self) -> None:
        stub = self.stub
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with stub.lock:
            headers = {name.lower(): value for name, value in self.headers.items()}
            call = Call(len(stub.calls), body, headers)
            stub.calls.append(call)
            stub.under_way += 1
            stub.most_at_a_time = max(stub.most_at_a_time, stub.under_way)
        found = self.path == "/v1/chat/completions"
        reply = type(self).behaviour(call) if found else refusal(404, f"no such path: {self.path}")
        if reply.act == "hang":
            stub.closing.wait()
        answer = self._completion(call, reply) if reply.act == "answer" else b""
        # All is counted before the answer leaves: the client goes on at once, and so may the test.
        with stub.lock:
            stub.under_way -= 1
            stub.acts[reply.act] += 1
            stub.statuses[reply.status] += reply.act == "answer"
        if reply.act == "answer":
            self._send(reply, answer)
        else:
            # A linger of 0 seconds makes the kernel send a reset, not an orderly end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()

    def _send(self, reply: Reply, body: bytes) -> None:
        self.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _completion(self, call: Call, reply: Reply) -> bytes:
        if reply.text is None:
            return reply.body.encode()
        message = {"role": "assistant", "content": reply.text}
        completion: dict[str, Any] = {
            "id": f"chatcmpl-{call.index}",
            "object": "chat.completion",
            "model": call.body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": reply.finish_reason}],
        }
        usage = {"prompt_tokens": len(call.prompt.split()), "completion_tokens": len(reply.text.split())}
        with self.stub.lock:
            self.stub.completions += 1
            if reply.with_usage:
                self.stub.prompt_tokens += usage["prompt_tokens"]
                self.stub.completion_tokens += usage["completion_tokens"]
            else:
                self.stub.without_usage += 1
        return json.dumps({**completion, "usage": usage} if reply.with_usage else completion).encode()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the tests' output is theirs."""
