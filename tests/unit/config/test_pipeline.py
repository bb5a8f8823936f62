"""The jobs of a pipeline must build on each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from clara_dist.config import Config, TrainConfig, load_config
from clara_dist.config.compress import CompressConfig
from clara_dist.config.evaluate import EvaluateConfig
from clara_dist.config.pipeline import PipelineConfig
from clara_dist.config.serve import ServeConfig

CONFIGS = Path(__file__).parents[3] / "jobs" / "configs"


def tree() -> dict[str, Any]:
    stage = {"stage": "compression", "data": "c.jsonl", "steps": 1}
    joint = {"stage": "joint", "data": "j.jsonl", "steps": 1, "store": "run/store"}
    return {
        "run_dir": "run",
        "prepare": {"run_dir": "run/prepare", "model": {"base_model": "base"}, "stages": [stage]},
        "compress": {"corpus": ["corpus.jsonl"], "model": "run/m", "store": "run/store"},
        "joint": {"run_dir": "run/joint", "model": "run/m", "stages": [joint]},
        "evaluate": {"model": "run/j", "store": "run/store", "questions": "q.jsonl", "output": "run/report"},
    }


def test_jobs_that_fit() -> None:
    assert PipelineConfig.model_validate(tree()).report_dir == "run/report"


@pytest.mark.parametrize(
    ("job", "field", "value", "message"),
    [
        ("compress", "store", "elsewhere", "one store"),
        ("evaluate", "store", "elsewhere", "one store"),
        ("joint", "model", "run/other", "joint.model run/other must be compress.model run/m"),
        ("evaluate", "output", None, "evaluate needs output"),
    ],
)
def test_jobs_that_do_not_fit(job: str, field: str, value: str | None, message: str) -> None:
    changed = tree()
    changed[job][field] = value
    with pytest.raises(ValidationError, match=message):
        PipelineConfig.model_validate(changed)


def test_what_jobs_hand_on_need_not_be_written() -> None:
    short = tree()
    for job in ("prepare", "joint"):
        del short[job]["run_dir"]
    del short["compress"]["model"], short["compress"]["store"], short["joint"]["model"]
    del short["joint"]["stages"][0]["store"]
    short["evaluate"] = {"questions": "q.jsonl"}
    config = PipelineConfig.model_validate(short)
    assert (config.prepare.run_dir, config.joint.run_dir) == ("run/prepare", "run/joint")
    assert config.prepare.stages[-1].output == config.compress.model == config.joint.model == "run/models/compression"
    assert config.compress.store == config.joint.stages[0].store == config.evaluate.store == "run/store"
    assert config.joint.stages[-1].output == config.evaluate.model == "run/models/joint"
    assert config.report_dir == "run/report"


def test_a_model_that_is_named_leaves_the_stages_outputs_alone() -> None:
    named = tree()
    named["compress"]["model"] = named["joint"]["model"] = "run/prepare/compression/model"
    assert PipelineConfig.model_validate(named).prepare.stages[-1].output is None


def test_the_published_settings_by_compression_rate() -> None:
    """arXiv 2511.18659: lr 1e-4, 1e-4, 5e-6; tau 0.02; K 5 of N 20; documents of 256 tokens."""
    found = {}
    for path in CONFIGS.glob("mistral-7b*.yaml"):
        config = load_config(PipelineConfig, path)
        model, joint = config.prepare.model, config.joint.stages[0]
        assert not isinstance(model, str)
        assert [stage.optimizer.lr for stage in (*config.prepare.stages, joint)] == [1e-4, 1e-4, 5e-6]
        assert (joint.temperature, joint.top_k, joint.candidates.n, joint.resolved_estimator) == (
            0.02,
            5,
            20,
            "sequential",
        )
        assert (model.doc_max_tokens, model.lora.r, model.lora.scale_alpha) == (256, 16, 32)
        found[model.compression_rate] = (model.n_memory_tokens, config.run_dir)
    assert found == {rate: (256 // rate, f"runs/mistral-7b-cr{rate}") for rate in (4, 16, 32, 128)}


JOBS: dict[str, type[Config]] = {
    ".": PipelineConfig,
    "compress": CompressConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "serve": ServeConfig,
}
SHIPPED = [(cls, path) for folder, cls in JOBS.items() for path in sorted((CONFIGS / folder).glob("*.yaml"))]


@pytest.mark.parametrize(
    ("cls", "path"), SHIPPED, ids=[path.relative_to(CONFIGS).with_suffix("").as_posix() for _, path in SHIPPED]
)
def test_every_shipped_configuration_is_valid(cls: type[Config], path: Path) -> None:
    load_config(cls, path)


def test_every_job_has_its_configurations() -> None:
    assert {path.parent.name for path in CONFIGS.glob("*/*.yaml")} == JOBS.keys() - {"."}
    for folder in JOBS.keys() - {"."}:
        names = {path.stem for path in (CONFIGS / folder).glob("*.yaml")}
        papers = {name for name in names if name.startswith("paper-")}
        assert names - papers == {"demo", "single-node", "multi-node", "7b"}, folder


def test_published_figures_name_figures_of_the_report() -> None:
    paths = list((CONFIGS / "evaluate").glob("paper-*.yaml"))
    assert paths
    for path in paths:
        config = load_config(EvaluateConfig, path)
        for name, value in config.published.items():
            method, scope, measure = name.split(", ")
            assert method in ("BM25", "untrained reasoner", "joint STE", "oracle", "closed book")
            assert scope in ("candidates", "corpus")
            assert measure in {"EM", "F1", "cover", *(f"R@{k}" for k in config.recall_at)}
            assert 0 < value < 1


@pytest.mark.parametrize(("name", "whole"), [("demo", "demo"), ("7b", "mistral-7b")])
def test_single_jobs_are_configured_as_in_the_pipeline(name: str, whole: str) -> None:
    pipeline = load_config(PipelineConfig, CONFIGS / f"{whole}.yaml")
    assert load_config(CompressConfig, CONFIGS / "compress" / f"{name}.yaml") == pipeline.compress
    evaluate = load_config(EvaluateConfig, CONFIGS / "evaluate" / f"{name}.yaml")
    assert evaluate.model_copy(update={"output": pipeline.report_dir}) == pipeline.evaluate
    joint = load_config(TrainConfig, CONFIGS / "train" / f"{name}.yaml")
    stage = joint.stages[0].model_copy(update={"output": pipeline.evaluate.model})
    assert joint.model_copy(update={"run_dir": pipeline.joint.run_dir, "stages": (stage,)}) == pipeline.joint
    serve = load_config(ServeConfig, CONFIGS / "serve" / f"{name}.yaml")
    assert (serve.model, serve.store) == (pipeline.evaluate.model, pipeline.evaluate.store)
