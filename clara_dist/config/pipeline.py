"""The whole road as one configuration: from a base LLM and a corpus to an evaluated model and its store."""

from __future__ import annotations

from pydantic import model_validator

from clara_dist.config.base import Config
from clara_dist.config.compress import CompressConfig
from clara_dist.config.evaluate import EvaluateConfig
from clara_dist.config.training import TrainConfig


class PipelineConfig(Config):
    """Jobs that build on each other, in this order.

    Attributes:
        run_dir: Where finished jobs are recorded, so that a pipeline that was stopped goes on from there.
        prepare: Stages that train the compressor (and, in the demo, the base LLM).
        compress: Compresses the corpus with the model of ``prepare``.
        joint: The joint stage, on that store.
        evaluate: Compares the joint model's retrieval and answers with baselines; its ``output`` is needed.
    """

    run_dir: str
    prepare: TrainConfig
    compress: CompressConfig
    joint: TrainConfig
    evaluate: EvaluateConfig

    @model_validator(mode="after")
    def _jobs_fit_together(self) -> PipelineConfig:
        stores = {self.compress.store, self.evaluate.store, *(stage.store for stage in self.joint.stages)}
        if len(stores) > 1:
            raise ValueError(f"compress, joint and evaluate must name one store, not {sorted(map(str, stores))}")
        if self.joint.model != self.compress.model:
            raise ValueError(f"joint.model {self.joint.model} must be compress.model {self.compress.model}")
        if self.evaluate.output is None:
            raise ValueError("evaluate needs output")
        return self

    @property
    def report_dir(self) -> str:
        """Where the evaluation's report is."""
        return str(self.evaluate.output)
