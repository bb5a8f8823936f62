"""What configurations derive and refuse."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from clara_dist.config import ClaraConfig, LoraSettings, OptimizerConfig, StageConfig, TrainConfig
from clara_dist.config.compress import CompressConfig
from clara_dist.config.serve import ServeConfig


def test_published_defaults() -> None:
    config = ClaraConfig(base_model="b")
    assert (config.n_memory_tokens, config.doc_max_tokens, config.compression_rate) == (16, 256, 16)
    assert (config.lora.r, config.lora.scale_alpha) == (16, 32)


def test_alpha_wins_over_its_default() -> None:
    assert LoraSettings(r=8, alpha=3).scale_alpha == 3


@pytest.mark.parametrize("changes", [{"document_template": "{title}"}, {"n_memory_tokens": 9, "doc_max_tokens": 8}])
def test_clara_config_refuses(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ClaraConfig.model_validate({"base_model": "b"} | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"stage": "base"},
        {"stage": "joint"},
        {"stage": "compression", "optimizer": OptimizerConfig(name="muon")},
        {"stage": "compression", "steps": 0},
        {"stage": "joint", "store": "s", "top_k": 3, "candidates": {"source": "corpus", "n": 2}},
    ],
)
def test_stage_config_refuses(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        StageConfig.model_validate({"data": "d", "steps": 1} | changes)


def test_an_evaluation_that_searches_needs_candidates_for_every_slot() -> None:
    fields = {"stage": "joint", "data": "d", "steps": 1, "store": "s", "top_k": 3, "candidates": {"n": 2}}
    assert not StageConfig.model_validate(fields).searches
    with pytest.raises(ValidationError, match=r"candidates\.n 2 is less than top_k 3"):
        StageConfig.model_validate(fields | {"evaluation": {"data": "e", "candidates": "corpus"}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run_dir": "s3://b/run"}, "must be directories"),
        ({"model": {"base_model": "s3://b/base"}}, "must be directories"),
        ({"engine": {"kind": "torch", "dtype": "float16"}}, "one of its two optimisers"),
    ],
)
def test_base_stages_that_cannot_run_are_refused(changes: dict[str, object], message: str) -> None:
    stage = {"stage": "base", "data": "d", "steps": 1, "base_dir": "i", "optimizer": {"name": "muon"}}
    fields = {"run_dir": "r", "model": {"base_model": "b"}, "stages": [stage]}
    assert TrainConfig.model_validate(fields)
    with pytest.raises(ValidationError, match=message):
        TrainConfig.model_validate(fields | changes)


@pytest.mark.parametrize(
    ("estimator", "top_k", "resolved"),
    [(None, 1, "sequential"), (None, 2, "leave_own_out"), ("sequential", 5, "sequential")],
)
def test_estimator_follows_k_unless_named(estimator: str | None, top_k: int, resolved: str) -> None:
    stage = StageConfig.model_validate(
        {"stage": "joint", "data": "d", "steps": 1, "store": "s", "top_k": top_k, "estimator": estimator}
    )
    assert stage.resolved_estimator == resolved


@pytest.mark.parametrize(("max_rejects", "allowed"), [(0, 0), (0.01, 7), (0.999, 749), (1, 1), (20, 20)])
def test_allowed_rejects_is_a_share_or_a_count(max_rejects: float, allowed: int) -> None:
    config = CompressConfig(corpus=("c",), model="m", store="stores/a/", max_rejects=max_rejects)
    assert config.allowed_rejects(750) == allowed
    assert config.rejects_path == "stores/a.rejects.jsonl"
    config = CompressConfig(corpus=("c",), model="m", store="s3://b/a/?region=eu-west-1&scheme=https")
    assert config.rejects_path == "s3://b/a.rejects.jsonl?region=eu-west-1&scheme=https"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert ServeConfig(model="m", store="s", host=host).is_loopback is loopback


def test_serve_defaults_stay_within_the_limits() -> None:
    with pytest.raises(ValidationError, match="top_k 30 exceeds its limit 20"):
        ServeConfig(model="m", store="s", top_k=30)
