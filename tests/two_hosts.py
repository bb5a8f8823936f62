"""Two hosts on one machine: network namespaces with addresses of their own, joined by a cable that can be pulled.

Run below ``unshare --user --map-root-user --net --uts --mount``, so that nothing of the machine is touched and nothing
has to be undone: ``two_hosts.py HIDDEN CONFIG``. The first host is this process's own namespace, with the head and the
driver. The second one sees the same files, but for the directory HIDDEN. Prints what happened as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import ray

from chaos_corpus import compressors_below
from clara_dist.config import load_config
from clara_dist.config.compress import CompressConfig
from clara_dist.distributed.compress_job import compress
from clara_dist.distributed.session import connect
from clara_dist.errors import ClusterError

ONE, TWO, PORT = "10.123.0.1", "10.123.0.2", 6379
RAY = str(Path(sys.executable).with_name("ray"))
CUT_AFTER = 20  # shards


class Hosts:
    """Both, with one CPU each. The token is in the environment, which Ray reads when it is imported."""

    def __init__(self, hidden: str) -> None:
        # A host behind a cut cable does not refuse, it is silent.
        head = {"health_check_period_ms": 1000, "health_check_timeout_ms": 1000, "health_check_failure_threshold": 3}
        run("hostname", "one")
        run("ip", "link", "set", "lo", "up")
        # It waits for its cable.
        script = 'read go && hostname two && mount -t tmpfs tmpfs "$1" && shift && exec "$@"'
        join = [RAY, "start", f"--address={ONE}:{PORT}", f"--node-ip-address={TWO}", "--num-cpus=1", "--block"]
        self.two = subprocess.Popen(
            ["unshare", "--net", "--uts", "--mount", "sh", "-c", script, "sh", hidden, *join],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        own = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{self.two.pid}/ns/net") == own:  # until its namespace is there
            time.sleep(0.01)
        run("ip", "link", "add", "one", "type", "veth", "peer", "name", "two", "netns", str(self.two.pid))
        run("ip", "addr", "add", f"{ONE}/24", "dev", "one")
        run("ip", "link", "set", "one", "up")
        self.on_two("ip", "link", "set", "lo", "up")
        self.on_two("ip", "addr", "add", f"{TWO}/24", "dev", "two")
        self.on_two("ip", "link", "set", "two", "up")
        # Ray finds out its own address by the way that would lead there. All else is unreachable, at once.
        run("ip", "route", "add", "8.8.8.8", "via", TWO)
        self.on_two("ip", "route", "add", "8.8.8.8", "via", ONE)
        start = [RAY, "start", "--head", f"--port={PORT}", f"--node-ip-address={ONE}", "--num-cpus=1", "--block"]
        self.one = subprocess.Popen(
            [*start, "--include-dashboard=false"],
            stdout=subprocess.DEVNULL,
            env=os.environ | {f"RAY_{name}": str(value) for name, value in head.items()},
        )

    def join(self) -> None:
        assert self.two.stdin is not None
        self.two.stdin.write("go\n")
        self.two.stdin.close()

    def on_two(self, *command: str) -> None:
        run("nsenter", f"--target={self.two.pid}", "--net", *command)

    def cut_after(self, store: str, n_shards: int, found: dict[str, object]) -> None:
        """Pull the cable once so many shards are there."""
        while len(list(Path(store, "shards").glob("[!.]*.arrow"))) < n_shards:
            time.sleep(0.02)
        found["compressors of the second host"] = len(compressors_below(self.two.pid))
        self.on_two("ip", "link", "set", "two", "down")
        found["cut"] = time.monotonic()


def run(*command: str) -> None:
    subprocess.run(command, check=True)


def wait_for_head(address: str) -> None:
    deadline = time.monotonic() + 300
    while True:
        try:
            with connect(address):
                return
        except ClusterError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def main(hidden: str, path: str) -> None:
    address = f"{ONE}:{PORT}"
    config = load_config(CompressConfig, path)
    hosts = Hosts(hidden)
    found: dict[str, object] = {}
    wait_for_head(address)
    with connect(address):
        hosts.join()
        while sum(node["Alive"] for node in ray.nodes()) < 2:
            assert hosts.two.poll() is None, "the second host did not join"
            time.sleep(0.1)
        found["addresses"] = sorted(node["NodeManagerAddress"] for node in ray.nodes())
        try:
            compress(config.model_copy(update={"store": f"{hidden}/store", "rejects": f"{hidden}/rejects.jsonl"}))
        except ClusterError as error:
            found["refused"] = str(error)
        threading.Thread(target=hosts.cut_after, args=(config.store, CUT_AFTER, found)).start()
        report = compress(config)
        found["seconds after the cut"] = round(time.monotonic() - float(str(found.pop("cut"))), 1)
        found["documents"] = report.n_documents
        found["alive"] = [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]
    for host in (hosts.one, hosts.two):
        host.terminate()
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
