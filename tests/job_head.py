"""A head node on loopback with token authentication, for tests that submit jobs to it."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

REPOSITORY = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """A head node of two CPUs, started as an operator starts one."""

    address: str
    gcs: str
    token: str
    process: psutil.Process
    temp_dir: Path

    def environment(self, token: str | None = None) -> dict[str, str]:
        """Of a client: the head's own token, or another one; the empty one is none at all."""
        token = self.token if token is None else token
        return clean_environment() | ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {})

    def submit(self, *args: str, token: str | None = None) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "clara_dist.cli", "submit", args[0], "--address", self.address, *args[1:]]
        return subprocess.Popen(
            command,
            env=self.environment(token),
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell's background jobs ignore Ctrl-C, and their children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )


def clean_environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"}


def free_ports(n: int) -> list[int]:
    probes = [socket.socket() for _ in range(n)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


@contextmanager
def started_head(
    inside: Callable[[list[str]], list[str]] = lambda command: command, **variables: str
) -> Iterator[Head]:
    """What `ray start --head --block` starts; ``inside`` says where, ``variables`` are set as well."""
    gcs, dashboard, client, agent = free_ports(4)
    token = secrets.token_hex(32)
    # A socket's path may have 107 characters: pytest's own directories are too deep.
    temp_dir = Path(tempfile.mkdtemp(prefix="clara-"))
    command = [str(BIN / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=2"]
    command += [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    command += [f"--dashboard-agent-listen-port={agent}", "--dashboard-host=127.0.0.1", f"--temp-dir={temp_dir}"]
    environment = clean_environment() | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} | variables
    # A file: nobody reads a pipe while the tests run.
    with open(temp_dir / "start.log", "wb") as log:
        process = subprocess.Popen(inside(command), env=environment, stdout=log, stderr=subprocess.STDOUT)
    head = Head(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}", token, psutil.Process(process.pid), temp_dir)
    try:
        wait_until_it_answers(head)
        yield head
    finally:
        # Asked in order it takes half a minute, for nobody.
        everything = [head.process, *head.process.children(recursive=True)]
        for started in everything:
            with suppress(psutil.NoSuchProcess):
                started.kill()
        psutil.wait_procs(everything, timeout=30)
        shutil.rmtree(temp_dir, ignore_errors=True)


def wait_until_it_answers(head: Head) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            if httpx.get(f"{head.address}/api/jobs/", headers=bearer(head.token), trust_env=False).is_success:
                return
        except httpx.TransportError:
            pass
        assert head.process.status() != psutil.STATUS_ZOMBIE, (head.temp_dir / "start.log").read_text(encoding="utf-8")
        assert time.monotonic() < deadline, (head.temp_dir / "start.log").read_text(encoding="utf-8")
        time.sleep(0.2)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def submitted_by_ray(head: Head, *args: str) -> subprocess.Popen[str]:
    """As Ray's documentation submits a job, from the repository."""
    command = ["ray", "job", "submit", "--address", head.address, *args]
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=head.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def stop_last_job(head: Head, process: subprocess.Popen[str]) -> str:
    """Stop the job that ``process`` submitted; returns all that it said, which is more than ``process`` may have."""
    job = _running_job(head)
    # What `ray job stop` asks for, a second or two sooner.
    httpx.post(f"{_jobs(head)}/{job}/stop", headers=bearer(head.token), trust_env=False).raise_for_status()
    process.communicate(timeout=300)
    return _logs(head, job)


def logs_of_last_job(head: Head) -> str:
    """All that the running job has said so far; nothing before there is one."""
    job = _running_job(head)
    return "" if job is None else _logs(head, job)


def _jobs(head: Head) -> str:
    return f"{head.address}/api/jobs"


def _running_job(head: Head) -> str | None:
    jobs = httpx.get(f"{_jobs(head)}/", headers=bearer(head.token), trust_env=False).json()
    running = [each["submission_id"] for each in jobs if each["status"] == "RUNNING"]
    assert len(running) <= 1
    return running[0] if running else None


def _logs(head: Head, job: str) -> str:
    return str(httpx.get(f"{_jobs(head)}/{job}/logs", headers=bearer(head.token), trust_env=False).json()["logs"])
