"""Training runs: stages of one loop, their optimiser, their engine."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from clara_dist.config.base import Config
from clara_dist.config.deepspeed import conflicts, read_deepspeed_json, stated_fields, switches_off
from clara_dist.config.model import Attention, ClaraConfig, Dtype
from clara_dist.config.workers import WorkerRange

StageName = Literal["base", "compression", "instruct", "joint"]
EstimatorName = Literal["sequential", "leave_own_out"]
AblationName = Literal["hard", "soft", "contrastive"]
# Published layouts of question-answering data (`clara_dist.data.layouts`).
DataFormat = Literal["auto", "clara", "hotpotqa", "2wiki", "musique", "dpr"]


class OptimizerConfig(Config):
    """AdamW, or Muon on hidden matrices with AdamW on the rest (only sensible for full training, the base stage).

    Attributes:
        lr: The peak. The warm-up rises to it linearly; the schedule falls to ``min_lr_ratio`` of it, which the step
            after the last one would have.
        lr_by_role: Another peak for some of what is trained: ``{query_reasoner: 1e-4, memory_embeddings: 1e-3}``.
        warmup_steps: Length of the warm-up; None means ``warmup_ratio`` of the stage's steps.
        clip_norm: Gradients are scaled down to this norm, taken over all roles.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(1e-4, gt=0)
    lr_by_role: dict[str, float] = Field(default_factory=dict)
    adamw_lr: float = Field(2e-3, gt=0, description="with muon: learning rate of embeddings, norms and the head")
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    min_lr_ratio: float = Field(0.0, ge=0, le=1)
    warmup_steps: int | None = Field(None, ge=0)
    warmup_ratio: float = Field(0.05, ge=0, le=1)
    clip_norm: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _rates_fit(self) -> OptimizerConfig:
        if any(rate <= 0 for rate in self.lr_by_role.values()):
            raise ValueError(
                f"lr_by_role: {self.lr_by_role} has a rate that is not above 0; a role is frozen by stages"
            )
        if self.lr_by_role and self.name == "muon":
            raise ValueError("lr_by_role is for adamw; muon has lr and adamw_lr")
        return self

    def n_warmup(self, n_steps: int) -> int:
        """Steps of the warm-up in a stage of ``n_steps``."""
        return round(self.warmup_ratio * n_steps) if self.warmup_steps is None else self.warmup_steps


class EngineConfig(Config):
    """What runs the step.

    Attributes:
        kind: ``deepspeed``, or plain ``torch`` data parallelism, which shards and offloads nothing.
        zero_stage: DeepSpeed's: 0 shards nothing over the workers, 1 the optimiser's state, 2 gradients too, 3 weights
            too, the frozen base included.
        offload: What lives in CPU memory: the ``optimizer``'s state (from ZeRO 1), or ``all`` weights too (ZeRO 3).
        dtype: What is computed in. The trained weights have an fp32 master copy always. float16 scales the loss
            dynamically, and skips a step whose gradient overflows.
        attn_implementation: None: FlashAttention 2 on a GPU in half precision where it is installed, else SDPA.
        deepspeed_json: Any DeepSpeed configuration, or the path of its file, which is read here; ``"auto"`` means ours.
            What it says of a field above sets that field. It may not contradict a field that is set, nor the stage.
    """

    kind: Literal["deepspeed", "torch"] = "deepspeed"
    zero_stage: Literal[0, 1, 2, 3] = 0
    offload: Literal["none", "optimizer", "all"] = "none"
    dtype: Dtype = "float32"
    attn_implementation: Attention | None = None
    gradient_checkpointing: bool = False
    deepspeed_json: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _take_from_json(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not data.get("deepspeed_json"):
            return data
        settings = read_deepspeed_json(data["deepspeed_json"])
        data = data | {"deepspeed_json": settings}
        for field, (key, value) in stated_fields(settings).items():
            if data.setdefault(field, value) != value:
                raise ValueError(f"deepspeed_json: {key} means {field} = {value}, but {field} is set to {data[field]}")
        return data

    @model_validator(mode="after")
    def _parts_fit(self) -> EngineConfig:
        if self.kind == "torch" and (self.zero_stage or self.offload != "none" or self.deepspeed_json):
            raise ValueError("zero_stage, offload and deepspeed_json need kind = deepspeed")
        needed = {"none": 0, "optimizer": 1, "all": 3}[self.offload]
        if self.zero_stage < needed:
            raise ValueError(f"offload = {self.offload} needs zero_stage {needed} or more, not {self.zero_stage}")
        off = switches_off(self.deepspeed_json, self.dtype)
        if off is not None:
            raise ValueError(f"deepspeed_json: {off} = false, but dtype is {self.dtype}")
        return self


class CandidateConfig(Config):
    """Where the joint stage's candidates come from.

    ``given``: the example's own list (ragged lists allowed). ``corpus``: the current top ``n`` of the whole store by
    the reasoner that is being trained, gold neither known nor forced in. ``mixed``: ``corpus`` in a share of the
    batches. ``where`` restricts the corpus: an expression such as ``split = 'train' and year >= 2020`` on the store's
    metadata columns, or a mapping of columns to the values that they may hold.
    """

    source: Literal["given", "corpus", "mixed"] = "given"
    n: int = Field(20, ge=1)
    corpus_share: float = Field(0.5, ge=0, le=1)
    where: str | dict[str, tuple[str | int | float | bool, ...]] = Field(default_factory=dict)


class EvaluationDuringTraining(Config):
    """Held-out examples that a stage measures while it trains: ``eval/loss``, ``eval/recall@k``, ``eval/exact_match``.

    Attributes:
        data: As a stage's ``data``, and in its ``format``.
        every: Steps between evaluations. The start (step 0) and the end are evaluated too.
        n_examples: So many of them, evenly spread over the data; None: all.
        batch_size: Examples of one forward pass of a worker.
        candidates: Joint stage: choose among the examples' own lists (``given``), or search the store as training does
            (``corpus``). None: ``corpus`` where training knows no lists, else ``given``.
    """

    data: str
    every: int = Field(100, ge=1)
    n_examples: int | None = Field(256, ge=1)
    batch_size: int = Field(16, ge=1)
    candidates: Literal["given", "corpus"] | None = None


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
        ablation: Stage ``joint`` only, to compare with: ``hard`` teaches the reasoner nothing, ``soft`` has the
            generator read mixtures in training, ``contrastive`` teaches the reasoner by which candidates hold the
            answer. See `clara_dist.core.ablations`.
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
    ablation: AblationName | None = None
    random_slots: bool = True
    candidates: CandidateConfig = CandidateConfig()
    evaluation: EvaluationDuringTraining | None = None
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
        if self.searches and self.candidates.n < self.top_k:
            raise ValueError(f"candidates.n {self.candidates.n} is less than top_k {self.top_k}")
        return self

    @model_validator(mode="after")
    def _best_can_be_known(self) -> StageConfig:
        every = None if self.evaluation is None else self.evaluation.every
        if self.load_best_at_end and (every is None or self.checkpoint_every % every):
            raise ValueError("load_best_at_end needs evaluation, and a checkpoint_every that its every divides")
        if self.load_best_at_end and not self.keep_best:
            raise ValueError("load_best_at_end needs keep_best of 1 or more: the best step is not kept")
        return self

    @property
    def searches(self) -> bool:
        """Whether training or its evaluation searches the whole store."""
        by_evaluation = self.evaluation is not None and self.evaluation.candidates == "corpus"
        return self.stage == "joint" and (self.candidates.source != "given" or by_evaluation)

    @property
    def held_out(self) -> StageConfig | None:
        """The stage as its evaluation reads it: held-out data, and candidates of one source."""
        if self.evaluation is None:
            return None
        source = self.evaluation.candidates or ("corpus" if self.candidates.source == "corpus" else "given")
        candidates = self.candidates.model_copy(update={"source": source})
        return self.model_copy(update={"data": self.evaluation.data, "candidates": candidates})

    @property
    def resolved_estimator(self) -> EstimatorName:
        return self.estimator or ("sequential" if self.top_k == 1 else "leave_own_out")


class TrainConfig(Config):
    """A training run: consecutive stages in one worker group.

    Attributes:
        run_dir: Checkpoints, logs and models go here: a directory that all workers share, or a URL (``s3://``).
        model: A model directory to start from, or the description of a new model on ``base_model``; the base may be
            the output of a ``base`` stage of this run.
        workers: Data-parallel workers: ``4``, or ``1:4`` for 4 where the cluster has room, and as few as 1 while it has
            not: a run whose node leaves goes on with those that are left, with the same batches.
        use_gpu: None means: if the cluster has GPUs.
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
    workers: WorkerRange = WorkerRange(least=1, most=1)
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
            parts = self.workers.most * stage.gradient_accumulation
            if stage.batch_size % parts:
                raise ValueError(
                    f"stage {stage.stage}: batch_size {stage.batch_size} is not divisible by "
                    f"workers x gradient_accumulation = {parts}"
                )
        return self

    @model_validator(mode="after")
    def _base_stages_can_run(self) -> TrainConfig:
        for stage in self.stages:
            if stage.stage != "base":
                continue
            if stage.optimizer.name == "muon" and (stage.engine or self.engine).dtype == "float16":
                raise ValueError("stage base: float16 and muon: an overflow would skip one of its two optimisers only")
            base_model = self.model.base_model if isinstance(self.model, ClaraConfig) else self.model
            if any("://" in path for path in (base_model, stage.output or self.run_dir)):
                raise ValueError("stage base: base_model and output (or run_dir) must be directories, not URLs")
        return self

    @model_validator(mode="after")
    def _deepspeed_json_agrees(self) -> TrainConfig:
        for stage in self.stages:
            found = conflicts(
                (stage.engine or self.engine).deepspeed_json,
                batch_size=stage.batch_size,
                accumulation=stage.gradient_accumulation,
                workers=self.workers.most,
                steps=stage.steps,
                optimizer=stage.optimizer,
            )
            if found:
                hint = "change one of them, or write auto into the JSON"
                raise ValueError(f"stage {stage.stage}: deepspeed_json contradicts it: {'; '.join(found)} ({hint})")
        return self
