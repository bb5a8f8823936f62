"""Frozen configurations (pydantic, ``extra="forbid"``), YAML loading and dotted overrides."""

from clara_dist.config.base import Config, load_config
from clara_dist.config.model import ROLES, ClaraConfig, Dtype, LoraSettings, Role
from clara_dist.config.training import CandidateConfig, EngineConfig, OptimizerConfig, StageConfig, TrainConfig

__all__ = [
    "ROLES",
    "CandidateConfig",
    "ClaraConfig",
    "Config",
    "Dtype",
    "EngineConfig",
    "LoraSettings",
    "OptimizerConfig",
    "Role",
    "StageConfig",
    "TrainConfig",
    "load_config",
]
