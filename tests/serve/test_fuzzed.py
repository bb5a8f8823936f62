"""Bodies that no client should send, to a real server; `pytest tests/serve/test_fuzzed.py --fuzz 10000` sends many."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import httpx
import psutil
import pytest

from fuzzed_requests import fuzzed_requests

_CLIENTS = 8
# One request each, of what HTTP itself lets a client get wrong.
_NOISE: tuple[tuple[dict[str, str], bytes], ...] = (
    ({"Content-Type": "text/plain"}, b"{}"),
    ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, b"{}"),
    ({"Content-Type": "application/json", "X-Long": "x" * 8_000}, b"{}"),
    ({"Content-Type": "application/json"}, b'{"question": "a", "question": "b", "question": 3}'),
    ({"Content-Type": "application/json"}, b"[" * 4_000),
    ({"Content-Type": "application/json"}, b'{"question": "\xed\xa0\x80"}'),
)


def replicas() -> set[int]:
    """Process ids: whoever falls is replaced under another."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            title = process.cmdline()[:1]
        except psutil.Error:  # it has just ended
            continue
        if title and title[0].startswith("ray::ServeReplica:clara:"):
            found.add(process.pid)
    return found


def test_no_body_is_the_servers_fault(server: str, request: pytest.FixtureRequest) -> None:
    n = request.config.getoption("--fuzz")
    before = replicas()
    assert len(before) == 4  # ingress, engine, two parts of the store
    statuses: Counter[int] = Counter()
    bodies = iter(fuzzed_requests(n, seed=7))

    async def client(http: httpx.AsyncClient) -> None:
        for path, body in bodies:
            response = await http.post(path, content=body, headers={"Content-Type": "application/json"})
            statuses[response.status_code] += 1
            assert response.status_code < 500, (path, body, response.text)
            if response.status_code != 200:
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}, (path, body)

    async def send() -> None:
        async with httpx.AsyncClient(base_url=server, timeout=120, trust_env=False) as http:
            await asyncio.gather(*(client(http) for _ in range(_CLIENTS)))

    asyncio.run(send())
    assert sum(statuses.values()) == n
    assert min(statuses[200], statuses[400]) > n / 15, statuses
    # Nothing fell and was replaced behind the scenes.
    assert replicas() == before


def test_the_server_keeps_to_its_openapi_document(server: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """By schemathesis: made from the document, valid and not; replies must be of the status, type and shape it says."""
    n = request.config.getoption("--fuzz")
    before = replicas()
    # Not asked: whether all that the document allows is accepted (filters have a grammar of their own), and all that it
    # forbids is a 400 (a long body is a 413, another content type a 415).
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    command = [shutil.which("schemathesis", path=Path(sys.executable).parent), "run", f"{server}/openapi.json"]
    command += ["--checks", checks, "--phases", "coverage,fuzzing", "--max-examples", str(max(1, n // 10))]
    command += ["--seed", "7", "--continue-on-failure", "--no-shrink", "--report-dir", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "NO_PROXY": "*"}, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    found = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert found is not None, done.stdout[-2000:]
    assert found[1] == found[2]
    assert int(found[1]) > 200
    assert replicas() == before


@pytest.mark.parametrize("i", range(len(_NOISE)))
def test_what_is_wrong_before_the_body_is_told_in_the_same_shape(http: httpx.Client, i: int) -> None:
    headers, body = _NOISE[i]
    for path in ("/v1/answers", "/v1/retrieve", "/v1/chat/completions", "/v1/completions"):
        response = http.post(path, content=body, headers=headers)
        assert 400 <= response.status_code < 500, (path, headers)
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
