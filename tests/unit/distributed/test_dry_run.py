"""``--dry-run`` of every job: what would run is printed, what would fail is told, nothing is written or started."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from chaos_corpus import undisturbed, write_config
from clara_dist.cli import main
from clara_dist.config.compress import CompressConfig
from clara_dist.distributed import dry_run
from clara_dist.errors import DataError, FingerprintMismatchError, StoreError
from clara_dist.model import ClaraModel
from clara_dist.store import Fingerprint
from tiny_models import randomize_adapters

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether Ray runs says nothing: tests of other folders keep theirs up."""

    def start(*args: object, **kwargs: object) -> None:
        raise AssertionError("a dry run starts nothing")

    monkeypatch.setattr(ray, "init", start)


@pytest.fixture(scope="module")
def job(tiny_clara_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> CompressConfig:
    """A corpus of 30 good rows and two bad ones, and the store that is made of it in shards of at most 8 rows."""
    folder = tmp_path_factory.mktemp("job")
    config = write_config(folder, tiny_clara_dir, n_documents=30, rows_per_shard=8, workers=2)
    undisturbed(config, Path(config.store))
    rows = [{"question_id": "q", "question": "rain?", "answer": "x", "positives": ["d0001"]}]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return config


@pytest.fixture(scope="module")
def other_model(tiny_clara_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    clara = ClaraModel.from_pretrained(tiny_clara_dir)
    randomize_adapters(clara, seed=9)
    path = tmp_path_factory.mktemp("other") / "model"
    clara.save_pretrained(path)
    return path


def test_compress(job: CompressConfig, tmp_path: Path) -> None:
    new = job.model_copy(update={"store": str(tmp_path / "new" / "store")})
    lines = dict(line.split(None, 1) for line in dry_run.compress(new).splitlines())
    assert lines["corpus"] == "32 rows of 1 file, 4 shards"
    assert "M 3, documents of 24 tokens" in lines["model"]
    assert lines["store"].endswith(": new")
    assert not (tmp_path / "new").exists(), "nothing is written"
    assert "version 1 of this model, 30 rows in 4 shards" in dry_run.compress(job)


def test_compress_tells_what_would_fail(job: CompressConfig, other_model: Path, tmp_path: Path) -> None:
    with pytest.raises(FingerprintMismatchError, match="compressor"):
        dry_run.compress(job.model_copy(update={"model": str(other_model)}))
    with pytest.raises(DataError, match=r"absent\.jsonl"):
        dry_run.compress(job.model_copy(update={"corpus": (str(tmp_path / "absent.jsonl"),)}))
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StoreError, match="cannot be written"):
        dry_run.compress(job.model_copy(update={"store": str(tmp_path / "file" / "store")}))


def run(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Standard output of a command that succeeds; the error of one that does not."""
    try:
        main(args)
    except SystemExit as ended:
        captured = capsys.readouterr()
        return captured.err if ended.code else captured.out
    raise AssertionError("the command line always ends by exit")


def test_eval(job: CompressConfig, other_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = str(Path(job.store).parent / "questions.jsonl")
    args = ["eval", "--store", job.store, "--questions", questions, "--output", str(tmp_path / "out"), "--dry-run"]
    out = run(capsys, *args, "--model", job.model)
    assert f"questions   1 in {questions}" in out
    assert "version 1 of this model" in out
    assert not (tmp_path / "out").exists()
    assert "do not belong together; they differ in: compressor" in run(capsys, *args, "--model", str(other_model))


def test_serve(job: CompressConfig, other_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        args = ["serve", "--store", job.store, "--dry-run", "--model"]
        assert "cannot listen" in run(capsys, *args, job.model, "--port", str(port))
    out = run(capsys, *args, job.model, "--port", str(port))
    assert f"http://127.0.0.1:{port}" in out
    assert "exact" in out
    assert "has no index" in run(capsys, *args, job.model, "--port", str(port), "index=required")
    assert "differ in: compressor" in run(capsys, *args, str(other_model), "--port", str(port))


def test_pipeline(job: CompressConfig, tiny_base_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "rows.jsonl"
    rows = [{"data_type": "answer", "question": f"{i}?", "answers": "1", "docs": f"{i}."} for i in range(4)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    joint = tmp_path / "joint.jsonl"
    rows = [{"question": f"{i}?", "answer": "1", "docs": ["a", "b"], "pos_index": [0]} for i in range(4)]
    joint.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = tmp_path / "pipeline.yaml"
    questions = Path(job.store).parent / "questions.jsonl"
    tree = {
        "run_dir": str(tmp_path / "run"),
        "prepare": {
            "model": {"base_model": str(tiny_base_dir), "n_memory_tokens": 3, "doc_max_tokens": 24},
            "stages": [{"stage": "compression", "data": str(data), "steps": 3, "batch_size": 2}],
        },
        "compress": {"corpus": list(job.corpus)},
        "joint": {"stages": [{"stage": "joint", "data": str(joint), "steps": 2, "batch_size": 2, "top_k": 1}]},
        "evaluate": {"questions": str(questions)},
    }
    config.write_text(json.dumps(tree), encoding="utf-8")
    out = run(capsys, "pipeline", "--config", str(config), "--dry-run")
    assert "[1/4] train: compression" in out
    assert "3 of 2 examples (1 workers x 1 accumulated x 2): 1.50 epochs of 4" in out
    assert "[2/4] compress the corpus\ncorpus      32 rows of 1 file" in out
    assert "models/compression, which is made before" in out
    assert "2 of 2 examples" in out
    assert "questions   1 in " in out
    assert not (tmp_path / "run").exists()
    joint.unlink()
    assert f"training data is not there\n  got: {joint}" in run(
        capsys, "pipeline", "--config", str(config), "--dry-run"
    )


@pytest.mark.parametrize("job_file", ["compress", "train", "evaluate", "serve", "pipeline", "synthesize"])
def test_every_job_of_the_folder_takes_what_its_command_takes(job_file: str) -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "jobs" / f"{job_file}.py"), "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"},
    )
    for option in ("--config", "--dry-run", "[KEY=VALUE]"):
        assert option in done.stdout, option


def test_the_fingerprint_of_the_files_is_the_stores(job: CompressConfig) -> None:
    from clara_dist.model.files import fingerprint_fields
    from clara_dist.store import MemoryStore

    assert Fingerprint(fingerprint_fields(Path(job.model))) == MemoryStore.open(job.store).fingerprint
