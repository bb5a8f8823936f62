"""TLS between Ray's own processes, by certificates of cluster/tls.sh: who has none of them stays outside."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from job_head import REPOSITORY, Head, started_head

_SAYS_42 = "import ray, sys; ray.init(sys.argv[1]); print('it is', ray.get(ray.remote(lambda: 41).remote()) + 1)"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="clara-tls-") as name:
        folder = Path(name)
        # Ray chooses one of them; a Ray that another test of this process left connected would name its own.
        addresses = [
            each.address
            for network in psutil.net_if_addrs().values()
            for each in network
            if each.family == socket.AF_INET
        ]
        for authority, node in (("ca", "node"), ("other", "stranger")):
            for command in (["ca", authority], ["cert", authority, node, *addresses]):
                subprocess.run([REPOSITORY / "cluster" / "tls.sh", *command], cwd=folder, check=True)
        yield folder


def variables(folder: Path, node: str, authority: str) -> dict[str, str]:
    """What every process of the cluster is started with, as the script says."""
    files = {"SERVER_CERT": f"{node}/tls.crt", "SERVER_KEY": f"{node}/tls.key", "CA_CERT": f"{authority}/ca.crt"}
    return {"RAY_USE_TLS": "1", **{f"RAY_TLS_{name}": str(folder / file) for name, file in files.items()}}


@pytest.fixture(scope="module")
def head(folder: Path) -> Iterator[Head]:
    with started_head(**variables(folder, "node", "ca")) as head:
        yield head


def drive(head: Head, more: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _SAYS_42, head.gcs]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=head.environment() | more, **pipes)


def test_only_a_driver_with_a_certificate_of_the_authority_gets_in(head: Head, folder: Path) -> None:
    strangers = [drive(head, {}), drive(head, variables(folder, "stranger", "other"))]
    try:
        out, _ = drive(head, variables(folder, "node", "ca")).communicate(timeout=120)
        assert "it is 42" in out
        # They had the token, and more time than the one that got in; Ray goes on trying for minutes.
        assert [stranger.poll() for stranger in strangers] == [None, None]
    finally:
        for stranger in strangers:
            stranger.kill()
    said = [stranger.communicate()[0] for stranger in strangers]
    assert not any("it is 42" in each for each in said)
    assert "CERTIFICATE_VERIFY_FAILED" in said[1]
