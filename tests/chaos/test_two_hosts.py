"""Two hosts with addresses, names and mounts of their own; the cable between them is pulled in the middle of a job."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from chaos_corpus import rows_of, undisturbed, write_config

TESTS = Path(__file__).parents[1]
# A process namespace, too: whatever is left ends with the script.
NAMESPACES = ["unshare", "--user", "--map-root-user", "--net", "--uts", "--mount", "--pid", "--fork", "--mount-proc"]


def may_have_hosts() -> bool:
    command = [*NAMESPACES, "ip", "link", "add", "one", "type", "veth", "peer", "name", "two"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.timeout(900)
def test_a_job_on_two_hosts_outlives_the_cable_between_them(tiny_clara_dir: Path, tmp_path: Path) -> None:
    if not may_have_hosts():
        pytest.skip("this machine gives tests no network namespaces (unshare --user --net, iproute2)")
    config = write_config(tmp_path / "job", tiny_clara_dir, n_documents=400, rows_per_shard=4, workers=2)
    expected = undisturbed(config, tmp_path / "undisturbed")
    (tmp_path / "hidden").mkdir()
    path = tmp_path / "compress.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    command = [*NAMESPACES, "--kill-child", sys.executable, str(TESTS / "two_hosts.py")]
    # A socket's path may have 107 characters: pytest's own directories are too deep.
    with tempfile.TemporaryDirectory(prefix="clara-", ignore_cleanup_errors=True) as sockets:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        environment |= {"RAY_TMPDIR": sockets, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
        done = subprocess.run(
            [*command, str(tmp_path / "hidden"), str(path)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=840,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["addresses"] == ["10.123.0.1", "10.123.0.2"]
    assert f"got: two: {tmp_path}/hidden/store is not the driver's" in found["refused"]
    assert found["compressors of the second host"] == 1
    assert found["alive"] == ["10.123.0.1"]
    assert found["documents"] == 400
    assert rows_of(config.store) == expected
