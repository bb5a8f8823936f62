"""Commands of ours as jobs of a Ray cluster, by its job API.

The working directory travels with the job. The token of a cluster with token authentication is Ray's to find:
``RAY_AUTH_MODE=token`` with ``RAY_AUTH_TOKEN``, ``RAY_AUTH_TOKEN_PATH`` or ``~/.ray/auth_token``. It is in no argument,
no runtime environment and no log.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from clara_dist.errors import ClusterError, ConfigError
from clara_dist.store.storage import refuse_credentials

# The commands that make sense as jobs, by the names of the files in jobs/.
COMMANDS = {
    "compress": "compress",
    "train": "train",
    "evaluate": "eval",
    "serve": "serve",
    "pipeline": "pipeline",
    "synthesize": "synthesize",
}
# In the terms of .gitignore, which is heeded as well: what is large and made by jobs, and what holds secrets.
EXCLUDES = (
    ".git",
    ".venv",
    "venv",
    "__pycache__",
    ".*_cache",
    "*.egg-info",
    "*.safetensors",
    "*.arrow",
    "*.parquet",
    "*.pt",
    "*.bin",
    "demo-run",
    ".env",
    ".env.*",
    "*.pem",
    "*.key",
    "auth_token",
)
_POLL_S = 1.0
_TERMINAL_PATIENCE_S = 30.0
_STOPPED_CODE = 143
_INTERRUPTED_CODE = 130
_WORKING_DIR = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"


@dataclass(frozen=True)
class Submission:
    """A job to be.

    Attributes:
        command: One of `COMMANDS`.
        args: What stands behind it.
        working_dir: Directory that travels with the job, or a URL of a zip file.
        entrypoint_num_cpus: CPUs that the driver reserves; above 0 it may run on any node, else on the head.
        constraints: pip constraints file in the working directory: the package and these versions are installed on
            the nodes first. None: they have what the job needs.
        stop_wait_s: Between the request to stop and the kill; a compression finishes the shards that are under way.
    """

    command: str
    args: tuple[str, ...] = ()
    working_dir: str = "."
    entrypoint_num_cpus: float = 0
    constraints: str | None = None
    stop_wait_s: int = 300

    @property
    def entrypoint(self) -> str:
        return shlex.join(["python", "-m", "clara_dist.cli", COMMANDS[self.command], *self.args])

    def runtime_env(self) -> dict[str, Any]:
        """Ray's description of what the job runs in.

        Raises:
            ConfigError: The working directory or the constraints file is not there.
        """
        remote = "://" in self.working_dir
        if not remote and not Path(self.working_dir).is_dir():
            raise ConfigError("there is no working directory to send", got=self.working_dir)
        environment: dict[str, Any] = {
            "working_dir": self.working_dir,
            "excludes": list(EXCLUDES),
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(self.stop_wait_s)},
        }
        if self.constraints is not None:
            if not remote and not Path(self.working_dir, self.constraints).is_file():
                raise ConfigError(
                    "the constraints file is not in the working directory",
                    got=self.constraints,
                    hint="name it from there",
                )
            environment["pip"] = [f"-c {_WORKING_DIR}/{self.constraints}", _WORKING_DIR]
        return environment


def submit(submission: Submission, address: str | None = None, *, follow: bool = True) -> int:
    """Submit a job, and stay with it.

    Args:
        submission: The job.
        address: ``http://HOST:8265``; None: ``RAY_API_SERVER_ADDRESS``, else ``RAY_ADDRESS``, else this machine's Ray.
        follow: Print the job's logs until it ends. Ctrl-C asks it to stop, a second one leaves it alone.

    Returns:
        The job's exit code, 143 if it was stopped, 130 if it was by Ctrl-C; 0 if it is not followed.

    Raises:
        ConfigError: The working directory or the constraints are not there.
        ClusterError: There is no such cluster, it refuses (the token), or the working directory is too large.
    """
    environment = submission.runtime_env()
    client = connect(address)
    try:
        job_id = client.submit_job(
            entrypoint=submission.entrypoint,
            runtime_env=environment,
            entrypoint_num_cpus=submission.entrypoint_num_cpus or None,
        )
    except (AuthenticationError, RuntimeError, ValueError, requests.RequestException) as error:
        raise ClusterError(
            "the cluster does not take the job",
            got=error,
            hint="a working directory that is too large: name another one, or exclude more in its .rayignore",
        ) from error
    print(f"submitted {job_id} to {client.get_address()}: {submission.entrypoint}", file=sys.stderr, flush=True)
    if not follow:
        print(job_id)
        return 0
    return _stay_with(client, job_id)


def connect(address: str | None) -> JobSubmissionClient:
    """A client of the cluster's job API.

    Raises:
        StoreError: The address carries credentials, which logs would repeat.
        ClusterError: Nobody answers, or the token is missing or wrong.
    """
    if address is not None:
        refuse_credentials(address)
    try:
        return JobSubmissionClient(address)
    except (AuthenticationError, ConnectionError, RuntimeError, ValueError, requests.RequestException) as error:
        raise ClusterError(
            f"cannot submit to {address or 'the Ray of this machine'}",
            got=str(error).strip().splitlines()[0],
            expected="the dashboard's address, such as http://HEAD:8265",
            hint="for a cluster with token authentication export RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH (a file) "
            "or RAY_AUTH_TOKEN",
        ) from error


def stop_all(address: str | None = None, *, is_eviction: bool = False) -> dict[str, str]:
    """Ask every job of a cluster to stop, and wait until all have ended: each takes as long as its ``stop_wait_s``.

    Args:
        address: As of `submit`.
        is_eviction: Nobody wants the jobs to end, their head is taken away: drivers on this machine get SIGTERM and end
            as FAILED (143), which KubeRay retries; a job that is asked to stop is STOPPED, which it takes for the end.
            Jobs without a driver have begun nothing, and are left alone.

    Returns:
        How each of them ended, by its id.

    Raises:
        ClusterError: There is no such cluster, it refuses (the token), or it does not answer any more.
    """
    client = connect(address)
    under_way = [job for job in client.list_jobs() if job.submission_id and not job.status.is_terminal()]
    if is_eviction:
        under_way = [job for job in under_way if job.driver_info is not None]
    for job in under_way:
        if is_eviction and _is_here(job.driver_info.node_ip_address):
            with suppress(ProcessLookupError):
                os.kill(int(job.driver_info.pid), signal.SIGTERM)
        else:
            client.stop_job(job.submission_id)
        print(f"asked {job.submission_id} to stop", file=sys.stderr, flush=True)
    return {job.submission_id: str(_ended(client, job.submission_id)) for job in under_way}


def _is_here(address: str) -> bool:
    return any(address == each.address for network in psutil.net_if_addrs().values() for each in network)


def _stay_with(client: JobSubmissionClient, job_id: str) -> int:
    """Print the logs until the job ends, and say how it did."""
    asked = False
    while True:
        try:
            asyncio.run(_print_logs(client, job_id))
            status = _ended(client, job_id)
        except KeyboardInterrupt:
            if asked:
                print(f"{job_id} is left running", file=sys.stderr)
                return _INTERRUPTED_CODE
            asked = True
            print(f"asking {job_id} to stop; Ctrl-C again leaves it alone", file=sys.stderr, flush=True)
            client.stop_job(job_id)
            continue
        break
    info = client.get_job_info(job_id)
    if status == JobStatus.SUCCEEDED:
        return 0
    if status == JobStatus.STOPPED:
        print(f"{job_id} was stopped; the same command goes on where it was", file=sys.stderr)
        return _INTERRUPTED_CODE if asked else _STOPPED_CODE
    if info.driver_exit_code is None:  # it never began, or its node is gone
        print(f"{job_id} failed: {info.message}", file=sys.stderr)
    return info.driver_exit_code or 1


async def _print_logs(client: JobSubmissionClient, job_id: str) -> None:
    # The connection may break before the job ends; what is lost then stays in the dashboard.
    with suppress(RuntimeError, aiohttp.ClientError):
        async for lines in client.tail_job_logs(job_id):
            print(lines, end="", flush=True)


def _ended(client: JobSubmissionClient, job_id: str) -> JobStatus:
    """The status that a job ends with."""
    patience = time.monotonic() + _TERMINAL_PATIENCE_S
    while True:
        try:
            status = client.get_job_status(job_id)
        except (RuntimeError, requests.RequestException) as error:
            if time.monotonic() > patience:
                raise ClusterError(f"the cluster of {job_id} does not answer", got=error) from error
        else:
            if status.is_terminal():
                return status
            patience = time.monotonic() + _TERMINAL_PATIENCE_S
        time.sleep(_POLL_S)
