"""The entrypoints of the RayJobs run as they are written, up to the work itself."""

from __future__ import annotations

import json
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from chaos_corpus import undisturbed, write_config
from kustomized import build

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def pod(tiny_clara_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a pod of the small overlay has under ``/``: settings, corpora, models, a store."""
    root = tmp_path_factory.mktemp("pod")
    data = root / "data"
    for name in ("corpora", "models", "stores"):
        (data / name).mkdir(parents=True)
    config = write_config(data / "corpora", tiny_clara_dir, n_documents=30, rows_per_shard=8, workers=1)
    Path(config.corpus[0]).rename(data / "corpora" / "corpus.jsonl")
    undisturbed(
        config.model_copy(update={"corpus": (str(data / "corpora" / "corpus.jsonl"),)}), data / "stores" / "corpus"
    )
    for name in ("instruct", "joint"):
        (data / "models" / name).symlink_to(tiny_clara_dir)
    rows = [{"question": f"rain {i}?", "answer": "x", "docs": ["a", "b"], "pos_index": [0]} for i in range(4)]
    (data / "corpora" / "joint.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = {"question_id": "q", "question": "rain?", "answer": "x", "positives": ["d0001"]}
    (data / "corpora" / "questions.jsonl").write_text(json.dumps(questions) + "\n")
    (settings,) = [each for each in build(ROOT / "cluster/kuberay/overlays/small") if each["kind"] == "ConfigMap"]
    (root / "etc/clara").mkdir(parents=True)
    for name, text in settings["data"].items():
        (root / "etc/clara" / name).write_text(text.replace("/data/", f"{data}/"))
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
    pod: Path, job: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = {
        each["metadata"]["name"]: each
        for each in build(ROOT / "cluster/kuberay/overlays/small")
        if each["kind"] == "RayJob"
    }
    _, script, *args = shlex.split(jobs[f"clara-{job}"]["spec"]["entrypoint"])
    args = [arg.replace("/etc/clara", f"{pod}/etc/clara") for arg in args]
    monkeypatch.setattr(sys, "argv", [script, *args, "--dry-run"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / Path(script).relative_to("/app")), run_name="__main__")
    captured = capsys.readouterr()
    assert ended.value.code == 0, captured.err
    assert line in captured.out
