"""The entrypoints of the RayJobs, up to the work itself; tests/ray/test_jobs.py runs them to their end."""

from __future__ import annotations

import runpy
import shlex
import sys
from pathlib import Path

import pytest
import yaml

import pod
from chaos_corpus import undisturbed
from clara_dist.config.compress import CompressConfig


@pytest.fixture(scope="module")
def files(tiny_clara_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a pod of the small overlay has under ``/``, and what the jobs before each one have made."""
    root = tmp_path_factory.mktemp("pod")
    data = root / "data"
    pod.fill(root, tiny_clara_dir, n_documents=30)
    (data / "models" / "joint").symlink_to(tiny_clara_dir)
    settings = {name: text.replace("/data/", f"{data}/") for name, text in pod.settings_of(pod.SMALL).items()}
    pod.write_settings(root, settings)
    config = CompressConfig.model_validate(yaml.safe_load(settings["compress.yaml"]) | {"max_rejects": 2})
    undisturbed(config, data / "stores" / "corpus")
    return root


@pytest.mark.parametrize(
    ("job", "line"),
    [
        ("compress", "32 rows of 1 file"),
        ("train", "2,000 of 64 examples"),
        ("evaluate", "version 1 of this model"),
    ],
)
def test_an_entrypoint_runs_as_written(
    files: Path, job: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, script, *args = shlex.split(pod.job_spec(f"clara-{job}")["entrypoint"])
    args = [arg.replace("/etc/clara", f"{files}/etc/clara") for arg in args]
    monkeypatch.setattr(sys, "argv", [script, *args, "--dry-run"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(pod.ROOT / Path(script).relative_to("/app")), run_name="__main__")
    captured = capsys.readouterr()
    assert ended.value.code == 0, captured.err
    assert line in captured.out
