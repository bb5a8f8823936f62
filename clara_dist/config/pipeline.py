"""The whole road as one configuration: from a base LLM and a corpus to an evaluated model and its store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import model_validator

from clara_dist.config.base import Config
from clara_dist.config.compress import CompressConfig
from clara_dist.config.evaluate import EvaluateConfig
from clara_dist.config.training import TrainConfig


class PipelineConfig(Config):
    """Jobs that build on each other, in this order.

    What one job hands to the next need not be written: without them, ``run_dir`` holds ``prepare/``, ``joint/``,
    ``models/<last stage>``, ``store/`` and ``report/``, and every job reads what the one before it wrote.

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

    @model_validator(mode="before")
    @classmethod
    def _places(cls, values: Any) -> Any:
        """Fill in the paths that are not given; what is malformed is left to the validation."""
        jobs = ("prepare", "compress", "joint", "evaluate")
        if not isinstance(values, dict) or not all(isinstance(values.get(job), dict) for job in jobs):
            return values
        root, values = values.get("run_dir"), {**values, **{job: dict(values[job]) for job in jobs}}
        prepare, compress, joint, evaluate = (values[job] for job in jobs)
        prepare.setdefault("run_dir", f"{root}/prepare")
        compress.setdefault("store", f"{root}/store")
        if "model" not in compress:
            compress["model"] = _last_output(prepare, f"{root}/models")
        joint.setdefault("run_dir", f"{root}/joint")
        joint.setdefault("model", compress["model"])
        if isinstance(joint.get("stages"), list):
            joint["stages"] = [
                {"store": compress["store"], **stage} if isinstance(stage, dict) else stage for stage in joint["stages"]
            ]
        if "model" not in evaluate:
            evaluate["model"] = _last_output(joint, f"{root}/models")
        evaluate.setdefault("store", compress["store"])
        evaluate.setdefault("output", f"{root}/report")
        return values

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
    def planned_joint(self) -> TrainConfig:
        """``joint`` as it can be planned: a model that is not there yet has the shape of the one it is prepared as."""
        if Path(str(self.joint.model)).is_dir():
            return self.joint
        return self.joint.model_copy(update={"model": self.prepare.model})

    @property
    def report_dir(self) -> str:
        """Where the evaluation's report is."""
        return str(self.evaluate.output)


def _last_output(run: dict[str, Any], models: str) -> str | None:
    """Where a run's last stage writes its model; a place below ``models``, if it has none."""
    stages = run.get("stages")
    if not isinstance(stages, list) or not stages or not isinstance(stages[-1], dict):
        return None
    last = {"output": f"{models}/{stages[-1].get('stage')}", **stages[-1]}
    run["stages"] = [*stages[:-1], last]
    return str(last["output"])
