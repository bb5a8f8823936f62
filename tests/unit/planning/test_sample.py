"""A corpus's size and lengths, and the command that plans with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clara_dist.cli import main
from clara_dist.config.corpus import CorpusConfig
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
    n, lengths = sample_lengths(CorpusConfig(corpus=(str(corpus),)), 512, doc_max_tokens=256)
    # A token for four bytes, and three of the frame. 1,000 tokens are passages from 0, 224, 448, 672 and 896 on.
    assert n == 1500 + 5 * 500
    assert dict(lengths.shares) == {13.0: 3 / 8, 107.0: 1 / 8, 259.0: 4 / 8}
    # Of three short texts and a long one, whose passages repeat 4 * 32 tokens, and eight ids and empty objects.
    assert lengths.bytes_per_text == pytest.approx((3 * 40 + 4000 + 4 * 4 * 32 + 8 * (5 + 2)) / 8)
    whole = sample_lengths(CorpusConfig(corpus=(str(corpus),)), 10_000, doc_max_tokens=256)[1]
    assert whole.shares == lengths.shares


def test_a_tokenizer_counts_better(corpus: Path, tiny_clara_dir: Path) -> None:
    settings, tokenizer = CorpusConfig(corpus=(str(corpus),)), tiny_clara_dir / "tokenizer.json"
    _, lengths = sample_lengths(settings, 512, doc_max_tokens=24, tokenizer=tokenizer)
    # No merges of x and y, so 41 and 4,001 tokens with the one before them: as passages that share 6, one of 24 and one
    # of 23, and 221 of 24 and one of 23.
    assert dict(lengths.shares) == {27.0: 224 / 228, 26.0: 4 / 228}


def test_fields_are_found_where_a_compression_finds_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "dump.json"
    path.write_text('{"page": {"id": 7, "body": "%s", "url": "u"}}\n' % ("x" * 400), encoding="utf-8")
    mapping = {"id_field": "page.id", "text_field": "page.body", "metadata_fields": "url=page.url"}
    n, lengths = sample_lengths(CorpusConfig(corpus=(str(path),), format="jsonl", **mapping), 9, doc_max_tokens=256)
    assert (n, dict(lengths.shares), lengths.bytes_per_text) == (1, {103.0: 1.0}, 400 + 1 + len(str({"url": "u"})))
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in mapping.items()]
    given = ["plan", "--parameters=7e9", "--hidden-size=64", "--gpu=A100", f"--corpus={path}", "--format=jsonl"]
    with pytest.raises(SystemExit) as done:
        main([*given, *flags])
    assert done.value.code == 0
    assert "1 of 103 + 16 tokens" in capsys.readouterr().out


def test_a_corpus_without_documents(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"doc_id": "a", "text": ""}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="no good document"):
        sample_lengths(CorpusConfig(corpus=(str(tmp_path / "bad.jsonl"),)), 5, doc_max_tokens=8)


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
    assert figures["memory_size_bytes"] == (1500 * 2 + 500 * 222) * 3 * 32 * 2
    for wrong in (["--gpu", "A100"], seven_b):
        with pytest.raises(SystemExit) as failed:
            main(["plan", *wrong])
        assert failed.value.code == 1
        assert "a plan needs" in capsys.readouterr().err
