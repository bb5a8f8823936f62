"""A corpus's size and lengths, and the command that plans with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clara_dist.cli import main
from clara_dist.errors import ConfigError
from clara_dist.planning.sample import sample_lengths


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three quarters of the texts have 40 bytes, the others 4,000."""
    path = tmp_path / "corpus.jsonl"
    rows = [{"doc_id": f"d{i:04}", "text": ("x" * 4000 if i % 4 == 0 else "y" * 40)} for i in range(2000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_sampled_lengths(corpus: Path) -> None:
    n, lengths = sample_lengths([str(corpus)], 512, doc_max_tokens=256)
    assert n == 2000
    # A token for four bytes, at most 256 of a document, and three of the frame; two whole stretches were read.
    assert dict(lengths.shares) == {13.0: 0.75, 259.0: 0.25}
    assert 0.75 * 45 + 0.25 * 4005 <= lengths.bytes_per_text <= 0.75 * 50 + 0.25 * 4010
    whole = sample_lengths([str(corpus)], 10_000, doc_max_tokens=256)[1]
    assert whole.shares == lengths.shares


def test_a_tokenizer_counts_better(corpus: Path, tiny_clara_dir: Path) -> None:
    _, lengths = sample_lengths([str(corpus)], 512, doc_max_tokens=24, tokenizer=tiny_clara_dir / "tokenizer.json")
    assert dict(lengths.shares) == {27.0: 1.0}  # no merges of x and y: 40 tokens, cut at 24


def test_a_corpus_without_documents(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"doc_id": "a", "text": ""}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="no good document"):
        sample_lengths([str(tmp_path / "bad.jsonl")], 5, doc_max_tokens=8)


def test_the_command(corpus: Path, tiny_clara_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seven_b = ["--parameters", "6.979e9", "--hidden-size", "4096", "--gpu", "h200"]
    with pytest.raises(SystemExit) as done:
        main(["plan", *seven_b, "--passages", "21000000", "--workers", "8"])
    assert done.value.code == 0
    printed = capsys.readouterr().out
    for line in (
        "worker-hours   37.3 ",
        "wall time      4.7 hours with 8 workers",
        "memories 2.75 TB",
        "60% of the H200's",
    ):
        assert line in printed
    with pytest.raises(SystemExit):
        main(["plan", "--model", str(tiny_clara_dir), "--corpus", str(corpus), "--gpu", "A100", "--json"])
    figures = json.loads(capsys.readouterr().out)
    assert figures["memory_size_bytes"] == 2000 * 3 * 32 * 2
    for wrong in (["--gpu", "A100"], seven_b):
        with pytest.raises(SystemExit) as failed:
            main(["plan", *wrong])
        assert failed.value.code == 1
        assert "a plan needs" in capsys.readouterr().err
