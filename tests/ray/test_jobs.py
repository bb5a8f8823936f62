"""Jobs submitted to a real head on loopback with token authentication: refusals, exit codes, logs, stop, going on."""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

import pod
from chaos_corpus import compressors_below, rows_of, undisturbed, write_config
from clara_dist.config.compress import CompressConfig
from clara_dist.errors import StoreError
from clara_dist.store import MemoryStore, shard_names, verify
from job_head import REPOSITORY, Head, bearer, started_head
from kustomized import build


@pytest.fixture(scope="module")
def pod_files(tiny_clara_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the small overlay's pods have under ``/``: settings, a corpus, a model."""
    root = tmp_path_factory.mktemp("pod")
    pod.fill(root, tiny_clara_dir, n_documents=600)
    settings = pod.settings_of(pod.SMALL)
    (stage,) = yaml.safe_load(settings["train.yaml"])["stages"]
    pod.write_settings(
        root,
        settings,
        # What an operator with two CPUs and a tiny corpus changes.
        compress={"workers": 1, "cpus_per_worker": 1, "rows_per_shard": 4, "max_rejects": 2},
        train={"workers": 1, "stages": [stage | {"steps": 4, "batch_size": 2}]},
    )
    return root


@pytest.fixture(scope="module")
def head(pod_files: Path) -> Iterator[Head]:
    """Where the machine allows it, with a pod's directories."""
    inside = partial(pod.in_pod, pod_files) if pod.may_mount() else list
    with started_head(inside) as head:
        yield head


@pytest.fixture
def job(tiny_clara_dir: Path, tmp_path: Path) -> tuple[CompressConfig, str]:
    """A job, and the file of its configuration."""
    config = write_config(tmp_path / "job", tiny_clara_dir, n_documents=60, rows_per_shard=6, workers=1)
    return config, written(config, tmp_path)


def written(config: CompressConfig, folder: Path) -> str:
    path = folder / "compress.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    return str(path)


def test_without_the_token_nothing_is_told_and_nothing_is_taken(head: Head, job: tuple[CompressConfig, str]) -> None:
    wrong = secrets.token_hex(32)
    for path in ("/api/jobs/", "/api/cluster_status", "/nodes?view=summary"):
        assert httpx.get(head.address + path, trust_env=False).status_code == 401, path
        assert httpx.get(head.address + path, headers=bearer(wrong), trust_env=False).status_code == 403, path
    for token, said in (("", "Authentication required"), (wrong, "Authentication failed")):
        process = head.submit("compress", "--", "--config", job[1], token=token)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 1, out
        assert err.startswith("error: cannot submit to http://127.0.0.1:"), err
        assert said in err or str({"": 401, wrong: 403}[token]) in err, err
        assert "RAY_AUTH_TOKEN_PATH" in err
    assert httpx.get(f"{head.address}/api/jobs/", headers=bearer(head.token), trust_env=False).json() == []


def test_without_the_token_nobody_joins_or_asks_the_gcs(head: Head, tmp_path: Path) -> None:
    """The port that nodes and drivers talk to, beside the dashboard's. All at once: Ray takes its time to give up."""
    status = ["ray", "status", f"--address={head.gcs}"]
    join = ["ray", "start", f"--address={head.gcs}", "--block", "--num-cpus=1", "--node-ip-address=127.0.0.1"]
    drive = [sys.executable, "-c", f"import ray; ray.init('{head.gcs}'); print(ray.nodes())"]
    tried = [
        # Ray would also take a token from the home directory.
        subprocess.Popen(
            command,
            env=head.environment(token) | {"HOME": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for token in ("", secrets.token_hex(32))
        for command in (status, drive, join)
    ]
    for process in tried:
        out, _ = process.communicate(timeout=240)
        assert process.returncode != 0, out
        assert b"Alive" not in out
    own = subprocess.run(status, env=head.environment(), capture_output=True, text=True, check=True)
    assert "Active:\n 1 node_" in own.stdout, own.stdout


def test_a_job_that_fails_ends_with_its_own_code_and_says_why(
    head: Head, job: tuple[CompressConfig, str], tmp_path: Path
) -> None:
    # The driver runs in an unpacked copy of the working directory, which Ray deletes: a store must not go there.
    process = head.submit("compress", "--entrypoint-num-cpus", "0.5", "--", "--config", job[1], "store=stores/mine")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert "error: what the job writes would be deleted with its working directory" in out
    assert "submitted raysubmit_" in err
    process = head.submit("compress", "--", "--nonsense")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert "No such option: --nonsense" in out


def test_a_job_is_stopped_and_goes_on(head: Head, tiny_clara_dir: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "job", tiny_clara_dir, n_documents=1200, rows_per_shard=4, workers=1)
    expected = undisturbed(config, tmp_path / "undisturbed")
    path = written(config, tmp_path)
    process = head.submit("compress", "--", "--config", path)
    shards = Path(config.store, "shards")
    while len(list(shards.glob("[!.]*.arrow"))) < 5:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    supervisor = next(p for p in head.process.children(recursive=True) if "JobSupervisor" in " ".join(p.cmdline()))
    assert supervisor.environ()["RAY_JOB_STOP_WAIT_TIME_S"] == "300", "Ray's own 3 s are too short for a large shard"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, out + err
    assert "to stop; Ctrl-C again leaves it alone" in err
    assert "asked to stop: finishing what is under way" in out
    assert f"stopped; what is finished stays in {config.store}: the same command goes on from there" in out
    kept = {path: path.stat().st_ino for path in shards.glob("[!.]*.arrow")}
    assert 5 <= len(kept) < 301
    with pytest.raises(StoreError, match="no memory store"):
        MemoryStore.open(config.store)

    # The same job as Ray's documentation submits one.
    command = ["ray", "job", "submit", "--working-dir", ".", "--", "python", "jobs/compress.py", "--config", path]
    environment = head.environment() | {"RAY_API_SERVER_ADDRESS": head.address}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1200 documents in 301 shards" in done.stdout
    assert {path: path.stat().st_ino for path in kept} == kept, "finished shards are not written again"
    assert len(shard_names(config.store)) == 301
    assert rows_of(config.store) == expected
    print(f"stopped with {len(kept)} of 301 shards")


@pytest.mark.skipif(not pod.may_mount(), reason="this machine gives tests no mounts, so there can be no /app and /data")
def test_the_entrypoints_of_the_rayjobs_run_as_written(head: Head, pod_files: Path) -> None:
    data = pod_files / "data"
    shards = data / "stores" / "corpus" / "shards"
    compression = submitted_by_kuberay(head, "clara-compress")
    while len(list(shards.glob("[!.]*.arrow"))) < 5:
        assert compression.poll() is None, compression.communicate()
        time.sleep(0.05)
    # The head is taken away, and its hook runs. Until it has spoken the shards under way stay so.
    compressors = compressors_below(head.process.pid)
    for process in compressors:
        process.suspend()
    (cluster,) = [each for each in build(pod.SMALL) if each["kind"] == "RayCluster"]
    (container,) = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    *command, address = container["lifecycle"]["preStop"]["exec"]["command"]
    assert address == "http://127.0.0.1:8265"
    hook = subprocess.Popen(
        pod.in_pod(pod_files, [*command, head.address]), env=head.environment(), stderr=subprocess.PIPE, text=True
    )
    assert hook.stderr is not None
    assert any("asked raysubmit_" in line for line in hook.stderr)
    for process in compressors:
        process.resume()
    assert hook.wait(timeout=300) == 0
    out, _ = compression.communicate(timeout=300)
    assert "what is finished stays in /data/stores/corpus: the same command goes on from there" in out
    # For KubeRay a stopped job is complete, and a failed one is tried again.
    assert "exit code 143" in out
    n_kept = len(list(shards.glob("[!.]*.arrow")))
    assert 5 <= n_kept < 151

    for name, said in (
        ("clara-compress", "600 documents in 151 shards"),
        ("clara-train", "/data/models/joint"),
        ("clara-evaluate", "joint STE"),
    ):
        job = submitted_by_kuberay(head, name)
        out, _ = job.communicate(timeout=600)
        assert job.returncode == 0, out
        assert said in out
    assert verify(data / "stores" / "corpus").ok
    report = json.loads((data / "reports" / "joint" / "report.json").read_text(encoding="utf-8"))
    # Six documents are longer than the tiny model reads, and became two passages each.
    assert (report["n_questions"], report["n_documents"], report["n_passages"]) == (1, 600, 606)
    assert len(report["methods"]) == 5
    print(f"stopped with {n_kept} of 151 shards")


def submitted_by_kuberay(head: Head, name: str) -> subprocess.Popen[str]:
    """What the submitter's pod runs: the RayJob's entrypoint as the shell reads it, and no working directory."""
    command = f"ray job submit --address {head.address} -- {pod.job_spec(name)['entrypoint']}"
    return subprocess.Popen(
        command, shell=True, env=head.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_the_token_is_in_no_argument_and_in_no_log(head: Head) -> None:
    """After all of the jobs above."""
    processes = head.process.children(recursive=True)
    assert len(processes) > 5
    assert not any(head.token in argument for process in processes for argument in arguments_of(process))
    jobs = httpx.get(f"{head.address}/api/jobs/", headers=bearer(head.token), trust_env=False)
    statuses = ["FAILED", "FAILED", "STOPPED", "SUCCEEDED"]
    statuses += ["FAILED", "SUCCEEDED", "SUCCEEDED", "SUCCEEDED"] if pod.may_mount() else []
    assert sorted(job["status"] for job in jobs.json()) == sorted(statuses)
    assert head.token not in jobs.text
    logs = [path for path in head.temp_dir.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(logs) > 10
    assert [path for path in logs if head.token.encode() in path.read_bytes()] == []


def arguments_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []
