"""The runner of the demo's comparisons, on a world in which nothing is learned but everything happens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clara_dist.bench import demo_runs
from clara_dist.config.pipeline import PipelineConfig
from clara_dist.data.demo_files import DemoSizes, write_demo
from clara_dist.errors import ConfigError

SIZES = DemoSizes(
    n_train=20,
    n_held_out=5,
    n_questions=16,
    n_candidates=6,
    batch_size=8,
    base_steps=2,
    compression_steps=2,
    instruct_steps=2,
    hidden_size=32,
)
TINY = ["steps=2", "batch_size=8", "candidates.n=6", "top_k=3"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PipelineConfig:
    config = demo_runs.one_process(tmp_path_factory.mktemp("demo"), 1)
    stages = tuple(stage.model_copy(update={"steps": 2, "batch_size": 8}) for stage in config.prepare.stages)
    config = config.model_copy(update={"prepare": config.prepare.model_copy(update={"stages": stages})})
    demo_runs.prepare(config, lambda folder: write_demo(folder, 1, SIZES))
    return config


def test_what_is_prepared_is_not_made_again(config: PipelineConfig) -> None:
    def write_again(folder: Path) -> None:
        raise AssertionError(folder)

    demo_runs.prepare(config, write_again)
    other = config.model_copy(update={"compress": config.compress.model_copy(update={"rows_per_shard": 7})})
    with pytest.raises(ConfigError, match="other settings"):
        demo_runs.prepare(other, write_again)


def test_a_joint_stage_is_trained_and_scored_once(config: PipelineConfig, tmp_path: Path) -> None:
    scores = demo_runs.train_and_score(config, tmp_path / "run", [*TINY, "estimator=leave_own_out"])
    assert set(scores) == {"R@1", "R@3", "R@5", "EM@1", "EM@K"}
    # Untrained, but of 200 passages the right one is found more often the deeper one looks.
    assert 0 <= scores["R@1"] <= scores["R@3"] <= scores["R@5"] < 1
    record = tmp_path / "run" / demo_runs.SCORES_FILE
    assert json.loads(record.read_text(encoding="utf-8"))["settings"]["top_k"] == 3
    written = record.stat().st_mtime_ns
    assert demo_runs.train_and_score(config, tmp_path / "run", [*TINY, "estimator=leave_own_out"]) == scores
    assert record.stat().st_mtime_ns == written
    assert demo_runs.score(config, demo_runs.model_dir(tmp_path / "run"), 3) == scores
