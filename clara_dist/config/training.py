"""Training runs: stages of one loop, their optimiser, their engine."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from clara_dist.config.base import Config
from clara_dist.config.model import Attention, ClaraConfig, Dtype

StageName = Literal["base", "compression", "instruct", "joint"]
EstimatorName = Literal["sequential", "leave_own_out"]
# Published layouts of question-answering data (`clara_dist.data.layouts`).
DataFormat = Literal["auto", "clara", "hotpotqa", "2wiki", "musique", "dpr"]


class OptimizerConfig(Config):
    """AdamW, or Muon on hidden matrices with AdamW on the rest (only sensible for full training, the base stage)."""

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(1e-4, gt=0)
    adamw_lr: float = Field(2e-3, gt=0, description="with muon: learning rate of embeddings, norms and the head")
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = Field(0.05, ge=0, le=1)
    clip_norm: float = Field(1.0, gt=0)


class EngineConfig(Config):
    """What runs the step. ``deepspeed_json`` is merged over the DeepSpeed configuration that is made from the rest.

    ``attn_implementation`` None: FlashAttention 2 on a GPU in half precision where it is installed, else SDPA.
    """

    kind: Literal["deepspeed", "torch"] = "deepspeed"
    zero_stage: Literal[0, 1, 2, 3] = 0
    dtype: Dtype = "float32"
    attn_implementation: Attention | None = None
    gradient_checkpointing: bool = False
    deepspeed_json: dict[str, Any] = Field(default_factory=dict)


class CandidateConfig(Config):
    """Where the joint stage's candidates come from.

    ``given``: the example's own list (ragged lists allowed). ``corpus``: the current top ``n`` of the whole store by
    the reasoner that is being trained, gold neither known nor forced in. ``mixed``: ``corpus`` in a share of the
    batches. ``where`` restricts the corpus to rows whose metadata column holds one of the values.
    """

    source: Literal["given", "corpus", "mixed"] = "given"
    n: int = Field(20, ge=1)
    corpus_share: float = Field(0.5, ge=0, le=1)
    where: dict[str, tuple[str, ...]] = Field(default_factory=dict)


class StageConfig(Config):
    """One stage.

    Attributes:
        data: Examples: JSON lines, a JSON array, Parquet, a saved data set, ``hf://datasets/ORG/NAME?split=train``; a
            file, pattern, directory or URL. ``seed`` and ``shuffle`` decide their order.
        format: Their layout; ``auto`` tells it by the fields of each row.
        max_documents: Keep so many documents of an example, right and wrong ones by turns; None keeps all.
        max_truncated_answers: Share of examples whose answers may be cut because they do not fit into the model's
            ``max_prompt_tokens``. A cut answer is not taught to end where it was cut.
        batch_size: Examples per optimiser step, over all workers and accumulation steps.
        base_dir: Stage ``base`` only: directory with a ``config.json`` and a tokenizer; the trained base is written to
            ``output``.
        output: Where the stage's model goes; None means ``RUN_DIR/STAGE/model``.
        store: Stage ``joint`` only: the memory store, written by this model's compressor.
        store_version: The version to read, whatever is added meanwhile; None is the newest when a worker starts.
        top_k: K of the joint stage. ``estimator`` None means sequential at K = 1, leave_own_out above.
        random_slots: Feed a random number 1..K of the best slots per batch (only matters for K > 1).
        keep_checkpoints: Of the newest checkpoints so many stay, and besides the ``keep_best`` best by ``best_metric``
            of those that were evaluated at their very step; ``best_mode`` says whether low or high is good.
        load_best_at_end: The stage's model is that of the best step, not of the last.
    """

    stage: StageName
    data: str
    format: DataFormat = "auto"
    max_documents: int | None = Field(None, ge=1)
    max_truncated_answers: float = Field(0.0, ge=0, le=1)
    steps: int = Field(ge=1)
    batch_size: int = Field(64, ge=1)
    gradient_accumulation: int = Field(1, ge=1)
    shuffle: bool = True
    seed: int = 0
    optimizer: OptimizerConfig = OptimizerConfig()
    mse_weight: float = Field(0.1, ge=0)
    base_dir: str | None = None
    output: str | None = None
    store: str | None = None
    store_version: int | None = Field(None, ge=1)
    top_k: int = Field(1, ge=1)
    temperature: float = Field(0.02, gt=0)
    estimator: EstimatorName | None = None
    random_slots: bool = True
    candidates: CandidateConfig = CandidateConfig()
    log_every: int = Field(10, ge=1)
    checkpoint_every: int = Field(100, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    keep_best: int = Field(1, ge=0)
    best_metric: str = "eval/loss"
    best_mode: Literal["min", "max"] = "min"
    load_best_at_end: bool = False
    engine: EngineConfig | None = None

    @model_validator(mode="after")
    def _stage_has_its_inputs(self) -> StageConfig:
        if self.stage == "base" and self.base_dir is None:
            raise ValueError("stage 'base' needs base_dir")
        if self.stage == "joint" and self.store is None:
            raise ValueError("stage 'joint' needs store")
        if self.stage != "base" and self.optimizer.name == "muon":
            raise ValueError("muon trains whole matrices; LoRA stages use adamw")
        if self.stage == "joint" and self.candidates.source != "given" and self.candidates.n < self.top_k:
            raise ValueError(f"candidates.n {self.candidates.n} is less than top_k {self.top_k}")
        return self

    @property
    def resolved_estimator(self) -> EstimatorName:
        return self.estimator or ("sequential" if self.top_k == 1 else "leave_own_out")


class TrainConfig(Config):
    """A training run: consecutive stages in one worker group.

    Attributes:
        run_dir: Checkpoints, logs and models go here; shared by all workers.
        model: A model directory to start from, or the description of a new model on ``base_model``; the base may be
            the output of a ``base`` stage of this run.
        workers: Data-parallel workers. ``use_gpu`` None means: if the cluster has GPUs.
        search_actors: Actors that share the search of the joint stage's store; all workers ask them. 0: each worker
            searches by itself, which reads the whole store at every step: right as long as the store fits the memory
            of a worker's node beside everything else.
        cpus_per_search_actor: CPUs, and torch threads, of each.
        threads_per_worker: torch threads of a CPU worker; two contending threads were 5x slower than one.
    """

    run_dir: str
    model: str | ClaraConfig
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    engine: EngineConfig = EngineConfig()
    workers: int = Field(1, ge=1)
    use_gpu: bool | None = None
    cpus_per_worker: float = Field(1, gt=0)
    search_actors: int = Field(0, ge=0)
    cpus_per_search_actor: float = Field(1, gt=0)
    threads_per_worker: int = Field(1, ge=1)
    max_failures: int = Field(2, ge=0)
    start_timeout_s: float | None = Field(
        None, gt=0, description="patience until workers start; None: 5 minutes on a local Ray, an hour on a cluster"
    )
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"

    @model_validator(mode="after")
    def _batches_divide(self) -> TrainConfig:
        for stage in self.stages:
            parts = self.workers * stage.gradient_accumulation
            if stage.batch_size % parts:
                raise ValueError(
                    f"stage {stage.stage}: batch_size {stage.batch_size} is not divisible by "
                    f"workers x gradient_accumulation = {parts}"
                )
        return self
