from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clara_dist.config import load_config
from clara_dist.config.compress import CompressConfig
from clara_dist.config.workers import WorkerRange
from clara_dist.errors import ConfigError

JOB: dict[str, Any] = {"corpus": ("a.jsonl",), "model": "m", "store": "s"}


def workers_of(*overrides: str) -> WorkerRange:
    return load_config(CompressConfig, overrides=['corpus=["a"]', "model=m", "store=s", *overrides]).workers


def test_a_number_or_a_range() -> None:
    assert workers_of() == WorkerRange(least=1, most=1)
    assert workers_of("workers=4") == WorkerRange(least=4, most=4)
    # YAML 1.1 reads an unquoted 1:8 as 68, to the base of 60.
    assert workers_of("workers=1:8") == workers_of('workers="1:8"') == WorkerRange(least=1, most=8)


def test_a_file_says_it_as_the_command_line_does(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("corpus: [a]\nmodel: m\nstore: s\nworkers: 2:30\n", encoding="utf-8")
    config = load_config(CompressConfig, tmp_path / "job.yaml")
    assert (config.workers.least, config.workers.most) == (2, 30)
    (tmp_path / "again.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(CompressConfig, tmp_path / "again.yaml") == config
    assert CompressConfig(**JOB, workers=3).model_dump()["workers"] == 3


@pytest.mark.parametrize("wrong", ["0", "8:1", "1:", ":8", "-2", "many", "true", "1.5"])
def test_what_is_no_number_of_workers(wrong: str) -> None:
    with pytest.raises(ConfigError, match="workers"):
        workers_of(f"workers={wrong}")


def test_a_gpu_can_be_shared_but_two_would_be_idle() -> None:
    assert CompressConfig(**JOB, gpus_per_worker=0.25, cpus_per_worker=0.5).gpus_per_worker == 0.25
    for field, value in (("gpus_per_worker", 0), ("gpus_per_worker", 2), ("cpus_per_worker", 0)):
        with pytest.raises(ValueError, match=field):
            CompressConfig(**{**JOB, field: value})


@pytest.mark.parametrize(
    ("m", "d", "doc_max_tokens", "rows"),
    [
        (16, 4096, 256, 2032),  # (256 << 20) // (131072 + 1024)
        (2, 4096, 256, 4096),  # 15,420 rows would fit: a shard is also what a failure costs
        (64, 8192, 1024, 255),
    ],
)
def test_shards_are_sized_in_bytes(m: int, d: int, doc_max_tokens: int, rows: int) -> None:
    passages = (256 << 20) // (2 * m * d + 4 * doc_max_tokens)
    # As many passages of one long document fill a shard as short documents would.
    assert CompressConfig(**JOB).shard_bounds(2 * m * d, doc_max_tokens) == (rows, passages * 4 * doc_max_tokens)
    assert CompressConfig(**JOB, rows_per_shard=7).shard_bounds(2 * m * d, doc_max_tokens)[0] == 7
    one = CompressConfig(**JOB, shard_size_bytes=1).shard_bounds(2 * m * d, doc_max_tokens)
    assert one == (1, 4 * doc_max_tokens)
