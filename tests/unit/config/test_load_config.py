"""YAML and dotted overrides become frozen configurations; whatever is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from clara_dist.config import ClaraConfig, StageConfig, TrainConfig, load_config
from clara_dist.errors import ConfigError

RUN = """
run_dir: runs/a
model: {base_model: base, n_memory_tokens: 4, doc_max_tokens: 64}
workers: 2
stages:
  - {stage: compression, data: c.jsonl, steps: 10}
  - {stage: joint, data: j.jsonl, steps: 20, store: stores/a, top_k: 3}
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN, encoding="utf-8")
    return path


def test_reads_nested_values(run_file: Path) -> None:
    config = load_config(TrainConfig, run_file)
    assert config.model == ClaraConfig(base_model="base", n_memory_tokens=4, doc_max_tokens=64)
    assert [stage.steps for stage in config.stages] == [10, 20]
    assert [stage.resolved_estimator for stage in config.stages] == ["sequential", "leave_own_out"]


def test_overrides_reach_into_lists_in_order(run_file: Path) -> None:
    overrides = [
        "stages.1.steps=7",
        "stages.1.steps=8",
        "stages.0.optimizer.lr=3e-3",
        "engine.zero_stage=2",
        "stages.1.candidates.where={split: [train]}",
    ]
    config = load_config(TrainConfig, run_file, overrides)
    assert config.stages[1].steps == 8
    assert config.stages[0].optimizer.lr == 0.003
    assert config.engine.zero_stage == 2
    assert config.stages[1].candidates.where == {"split": ("train",)}
    config = load_config(TrainConfig, run_file, ["stages.1.candidates.where=split = 'train' and year >= 2020"])
    assert config.stages[1].candidates.where == "split = 'train' and year >= 2020"


def test_a_value_may_contain_equals_signs() -> None:
    assert load_config(ClaraConfig, None, ["base_model=a=b=c"]).base_model == "a=b=c"


def test_yaml_round_trip(run_file: Path, tmp_path: Path) -> None:
    config = load_config(TrainConfig, run_file)
    copy = tmp_path / "copy.yaml"
    copy.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(TrainConfig, copy) == config


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["stages.0.stepz=5"], "stages.0.stepz"),
        (["stages.0.steps=zero"], "stages.0.steps"),
        (["workers=0", "run_dir=[]"], "workers"),
        (["stages.5.steps=1"], "points into something"),
        (["run_dir.deeper.still=1"], "points into something"),
        (["workers"], "a.b=value"),
        (["=3"], "a.b=value"),
        (["workers=[1"], "not valid YAML"),
        (["stages.1.store="], "stage 'joint' needs store"),
        (["stages.0.batch_size=9"], "not divisible"),
    ],
)
def test_what_is_wrong_is_named(run_file: Path, overrides: list[str], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(TrainConfig, run_file, overrides)
    assert named in str(caught.value)


def test_all_wrong_fields_are_listed_at_once(run_file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(TrainConfig, run_file, ["workers=0", "max_failures=-1"])
    assert "workers" in str(caught.value)
    assert "max_failures" in str(caught.value)


@pytest.mark.parametrize("content", [b"- a\n- b\n", b"a: [1\n", b"\xff\xfe\x00", b"", b"just text"])
def test_a_file_that_is_no_mapping(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_config(TrainConfig, path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration file"):
        load_config(TrainConfig, tmp_path / "absent.yaml")


def test_configurations_are_frozen() -> None:
    config = StageConfig(stage="compression", data="x", steps=1)
    with pytest.raises(ValidationError):
        config.steps = 2  # type: ignore[misc]


def test_a_file_may_hold_only_what_differs_from_another(run_file: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    middle, last = tmp_path / "sub" / "middle.yaml", tmp_path / "last.yaml"
    middle.write_text("extends: ../run.yaml\nmodel: {doc_max_tokens: 32}\nworkers: 4\n", encoding="utf-8")
    last.write_text(
        "extends: sub/middle.yaml\nstages: [{stage: compression, data: d.jsonl, steps: 1}]\n", encoding="utf-8"
    )
    config = load_config(TrainConfig, last, ["workers=8"])
    assert config.model == ClaraConfig(base_model="base", n_memory_tokens=4, doc_max_tokens=32)
    assert config.workers.most == 8
    assert [stage.data for stage in config.stages] == ["d.jsonl"]


def test_files_that_extend_each_other_are_an_error(tmp_path: Path) -> None:
    for one, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{one}.yaml").write_text(f"extends: {other}.yaml\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="in a circle"):
        load_config(TrainConfig, tmp_path / "a.yaml")


def test_a_missing_file_that_is_extended_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: gone.yaml\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"cannot read the configuration file .*gone\.yaml"):
        load_config(TrainConfig, tmp_path / "a.yaml")
