"""The command line: exit codes, messages without stack traces, flags and overrides, help that answers at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clara_dist import cli
from clara_dist.config.compress import CompressConfig
from clara_dist.config.serve import ServeConfig

COMMANDS = [
    "demo",
    "pipeline",
    "init",
    "import-apple",
    "export-apple",
    "compress",
    "plan",
    "bench ablations",
    "bench all",
    "bench candidates",
    "bench compress",
    "bench estimators",
    "bench joint",
    "bench multi-hop",
    "bench real-text",
    "bench search",
    "bench serve",
    "data check",
    "data convert",
    "synthesize",
    "train",
    "report",
    "serve",
    "ask",
    "eval",
    "submit",
    "diagnose selection",
    "diagnose words",
    "store info",
    "store versions",
    "store verify",
    "store diff",
    "store append",
    "store delete",
    "store restore",
    "store compact",
    "store export",
    "store import",
    "store gc",
    "index build",
    "index info",
]


def run(*args: str, code: int, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    with pytest.raises(SystemExit) as stopped:
        cli.main(args)
    assert stopped.value.code == code
    captured = capsys.readouterr()
    return captured.out, captured.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run(*command.split(), "--help", code=0, capsys=capsys)
    assert f"  clara-dist {command}" in out


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run("--help", code=0, capsys=capsys)
    assert {line.split()[0] for line in out.partition("Commands:\n")[2].splitlines()} == {
        command.split()[0] for command in COMMANDS
    }


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom clara_dist import cli\ntry:\n    cli.main(['compress', '--help'])\nexcept SystemExit:\n    "
        "print(sorted({'torch', 'ray', 'transformers', 'pyarrow', 'numpy', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version", code=0, capsys=capsys)[0] == "clara-dist 0.1.0\n"


@pytest.mark.parametrize("args", [["nonsense"], ["compress", "--nonsense"], ["ask"], ["train", "--config"]])
def test_wrong_usage_is_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(*args, code=2, capsys=capsys)
    assert out == ""
    assert "Error: " in err


def test_an_error_is_a_message_and_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run("store", "verify", str(tmp_path / "absent"), code=1, capsys=capsys)
    assert out == ""
    assert err.startswith("error: ")
    assert str(tmp_path / "absent") in err
    assert "Traceback" not in err


def test_debug_shows_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CLARA_DEBUG", "0")
    _, err = run("--debug", "store", "verify", str(tmp_path / "absent"), code=1, capsys=capsys)
    assert "Traceback" in err
    assert "StoreError" in err


def test_an_unexpected_error_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def explode(*args: object) -> None:
        raise ZeroDivisionError("made up")

    monkeypatch.setattr("clara_dist.store.info", explode)
    _, err = run("store", "info", "x", code=1, capsys=capsys)
    assert err.splitlines()[0] == "error: unexpected ZeroDivisionError: made up"
    assert "Traceback" not in err


def test_flags_win_over_the_file_and_overrides_over_flags(tmp_path: Path) -> None:
    path = tmp_path / "compress.yaml"
    path.write_text("corpus: [a.jsonl]\nmodel: m\nstore: s\nworkers: 2\nrows_per_shard: 7\n", encoding="utf-8")
    flags = {"corpus": ["b: c.jsonl", "#d"], "store": None, "workers": 3}
    config = cli.resolve(CompressConfig, path, ["workers=4"], flags)
    assert config == CompressConfig(corpus=("b: c.jsonl", "#d"), model="m", store="s", workers=4, rows_per_shard=7)


def test_an_unknown_setting_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    _, err = run("serve", "--model", "m", "--store", "s", "portt=1", code=1, capsys=capsys)
    assert err.startswith("error: invalid ServeConfig")
    assert "portt" in err


def test_serve_passes_its_settings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[ServeConfig] = []
    monkeypatch.setattr("clara_dist.distributed.serve_app.run", seen.append)
    run("serve", "--model", "m", "--store", "s", "--port", "8123", "limits.max_top_k=9", code=0, capsys=capsys)
    assert seen[0].port == 8123
    assert seen[0].limits.max_top_k == 9


def test_ask_without_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    # Port 9 is "discard": nothing listens there.
    _, err = run("ask", "who?", "--url", "http://127.0.0.1:9", code=1, capsys=capsys)
    assert "cannot reach a server at http://127.0.0.1:9" in err


def test_init_writes_a_model(tiny_base_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from clara_dist.model.files import read_config

    out = tmp_path / "model"
    run("init", str(out), "--base", str(tiny_base_dir), "n_memory_tokens=2", "doc_max_tokens=8", code=0, capsys=capsys)
    config = read_config(out)
    assert (config.n_memory_tokens, config.doc_max_tokens, config.stage) == (2, 8, "new")
    assert (out / "memory_embeddings.safetensors").is_file()


def test_ctrl_c_is_130() -> None:
    script = (
        "import sys, threading\nfrom clara_dist import cli, store\n"
        "def wait(*_):\n    print('waiting', flush=True)\n    threading.Event().wait()\n"
        "store.info = wait\ncli.main(['store', 'info', 'x'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
        # A shell's background jobs ignore the signal, and their children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in err


def test_a_training_run_is_planned_without_ray(
    tiny_base_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Path(__file__).parents[2] / "jobs" / "configs" / "mistral-7b-cr128.yaml"
    base = f"prepare.model.base_model={tiny_base_dir}"
    # The joint run's model is not there yet; it has the shape of the one that the other run prepares.
    args = ["train", "--config", str(config), "--part", "joint", "--dry-run", base, "joint.workers=4"]
    out, _ = run(*args, code=0, capsys=capsys)
    assert "M 2 (compression rate 128)" in out
    assert "3,000 of 32 examples (4 workers x 2 accumulated x 4)" in out
    assert next(line for line in out.splitlines() if line.endswith("<-")).startswith("  ZeRO 2")
    assert not (tmp_path / "runs").exists()
