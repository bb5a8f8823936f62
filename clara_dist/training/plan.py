"""What a training run will take, before it is run: weights per role, memory per worker, steps, tokens.

Nothing is loaded but ``config.json`` of the base LLM and the rows of the data.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clara_dist.config.model import ClaraConfig, Dtype
from clara_dist.config.training import EngineConfig, StageConfig, TrainConfig
from clara_dist.errors import ModelError, TrainingError
from clara_dist.model.files import read_config
from clara_dist.model.sizes import MetaModel, ModelSizes
from clara_dist.training.data import run_tokenizer, stage_lengths
from clara_dist.training.lengths import DataLengths
from clara_dist.training.run_directory import RunDirectory
from clara_dist.training.stages import TRAINED_ROLES

_FRAME_TOKENS = 3  # <ENC>, bos, eos around a text that is encoded
_ANSWER_TOKENS = 64  # where nothing is known of the answers
_DTYPE_BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
_ADAM_BYTES = 8  # two fp32 moments a weight
_PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "candidates")
_COLUMNS = (*_PARTS, "total", "host")


@dataclass(frozen=True)
class Longest:
    """Tokens of a stage's longest examples, frame and memory tokens included.

    Attributes:
        encoded: Of a document (``compression``, ``instruct``) or question (``joint``) with its memory tokens.
        prompt: Of the generator's prompt with its answer.
        answer: Of the answer.
        documents: Documents of an example.
    """

    encoded: int
    prompt: int
    answer: int = _ANSWER_TOKENS
    documents: int = 1


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one worker's device at the peak of a step; without the runtime's own (about 1 GB with CUDA) and slack.

    Attributes:
        weights: The base LLM and all adapters.
        gradients: Of the trained weights.
        optimizer: AdamW's moments, and fp32 copies of weights that are trained in 16 bits.
        activations: What autograd keeps of all forward passes of a micro-batch.
        logits: Of the answer positions, no others.
        candidates: Memories that the joint stage chooses from.
        host: In CPU memory instead, and not part of the total: what is offloaded.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    candidates: float
    host: float

    @property
    def total(self) -> float:
        return sum(getattr(self, name) for name in _PARTS)


@dataclass(frozen=True)
class StagePlan:
    """One stage.

    Attributes:
        key: Its name in the run directory.
        steps: Optimiser steps.
        batch: Examples of a step: workers x accumulation x micro-batch.
        n_examples: Of its data; None where the data is not there yet.
        step_tokens: Tokens of a step that pass through the model, on average; None where the data was not measured.
        trained: Trained weights by role.
        frozen: The others.
        memory: By ZeRO stage; the torch engine is ``{0: ..}``.
        zero_stage: The one that is configured.
        longest: What the memory was computed for.
    """

    key: str
    steps: int
    batch: tuple[int, int, int]
    n_examples: int | None
    step_tokens: float | None
    trained: Mapping[str, int]
    frozen: Mapping[str, int]
    memory: Mapping[int, MemoryPlan]
    zero_stage: int
    longest: Longest

    @property
    def epochs(self) -> float | None:
        workers, accumulation, micro = self.batch
        examples = self.steps * workers * accumulation * micro
        return None if self.n_examples is None else examples / self.n_examples


@dataclass(frozen=True)
class RunPlan:
    """All stages of a run."""

    model: ClaraConfig
    sizes: ModelSizes
    stages: tuple[StagePlan, ...] = field(default=())


def measure(config: TrainConfig) -> dict[str, DataLengths]:
    """Read and check the data of all stages whose data is there, by stage key; as `stage_lengths`."""
    try:
        tokenizer = run_tokenizer(config)
    except ModelError:
        tokenizer = None  # shapes may be there without a tokenizer; nothing but tokens is missing then
    keys = zip(RunDirectory.stage_keys(config), config.stages, strict=True)
    return {key: stage_lengths(stage, tokenizer) for key, stage in keys if _is_there(stage.data)}


def plan_run(config: TrainConfig, lengths: Mapping[str, DataLengths]) -> RunPlan:
    """Plan a run.

    Args:
        config: The run.
        lengths: What is known of the stages' data. A stage without is planned for the longest texts that its model
            reads.

    Raises:
        ModelError: The base's configuration cannot be read.
        TrainingError: The model is one that another run makes, and it has not.
    """
    model = _model_config(config)
    stages = []
    for key, stage in zip(RunDirectory.stage_keys(config), config.stages, strict=True):
        engine = stage.engine or config.engine
        base = stage.base_dir if stage.stage == "base" and stage.base_dir else _base_source(config, model)
        meta = MetaModel(model.model_copy(update={"base_model": base}), engine.dtype)
        stages.append(_stage_plan(key, stage, engine, config.workers.most, model, meta, lengths.get(key)))
    return RunPlan(model, meta.sizes, tuple(stages))


def _is_there(data: str) -> bool:
    return "://" in data or next(glob.iglob(data, recursive=True), None) is not None


def _model_config(config: TrainConfig) -> ClaraConfig:
    if isinstance(config.model, ClaraConfig):
        return config.model
    if not os.path.isdir(config.model):
        raise TrainingError(
            f"the model {config.model} is not there yet",
            hint="run what makes it first, or plan with a description in its place: "
            "'model={base_model: PATH_OR_ID, compression_rate: 16}'",
        )
    return read_config(Path(config.model))


def _base_source(config: TrainConfig, model: ClaraConfig) -> str:
    """Where the shapes of the base are: those of a base that this run trains are in its ``base_dir``."""
    first = config.stages[0]
    if first.stage == "base" and first.base_dir and not os.path.isdir(model.base_model):
        return first.base_dir
    beside = os.path.join(config.model, model.base_model) if isinstance(config.model, str) else ""
    return beside if os.path.isdir(beside) else model.base_model


def _stage_plan(
    key: str,
    stage: StageConfig,
    engine: EngineConfig,
    workers: int,
    model: ClaraConfig,
    meta: MetaModel,
    known: DataLengths | None,
) -> StagePlan:
    micro = stage.batch_size // (workers * stage.gradient_accumulation)
    longest = _longest(model, known)
    weights: dict[str, int] = {
        "base": meta.sizes.base,
        **meta.sizes.roles,
        "memory_embeddings": meta.sizes.memory_embeddings,
    }
    chosen: tuple[str, ...] = ("base",) if stage.stage == "base" else TRAINED_ROLES[stage.stage]
    if stage.stage in ("compression", "instruct"):
        chosen = (*chosen, "memory_embeddings")
    trained = {name: n for name, n in weights.items() if name in chosen}
    zero_stages = range(4) if engine.kind == "deepspeed" else (0,)
    step = _step_bytes(stage, engine, micro, model, meta, longest)
    state = {
        zero: _state_bytes(sum(weights.values()), sum(trained.values()), engine, zero, workers) for zero in zero_stages
    }
    return StagePlan(
        key=key,
        steps=stage.steps,
        batch=(workers, stage.gradient_accumulation, micro),
        n_examples=None if known is None else known.examples,
        step_tokens=None if known is None else _mean_tokens(stage, model, known, stage.batch_size),
        trained=trained,
        frozen={name: n for name, n in weights.items() if name not in trained},
        memory={zero: MemoryPlan(**state[zero], **step) for zero in zero_stages},
        zero_stage=engine.zero_stage if engine.kind == "deepspeed" else 0,
        longest=longest,
    )


def _longest(model: ClaraConfig, known: DataLengths | None) -> Longest:
    encoded, prompt = model.doc_max_tokens + _FRAME_TOKENS + model.n_memory_tokens, model.max_prompt_tokens
    if known is None or known.prompt is None or known.answer is None:
        return Longest(encoded, prompt)
    read = known.document or known.question
    return Longest(
        encoded if read is None else read.max + model.n_memory_tokens,
        known.prompt.max,
        known.answer.max,
        known.documents.max if known.document and known.documents else 1,
    )


def _mean_tokens(stage: StageConfig, model: ClaraConfig, known: DataLengths, batch_size: int) -> float | None:
    """Tokens of a step: prompts, and what is encoded for them."""
    if known.prompt is None:
        return None
    tokens = known.prompt.mean
    if stage.stage == "joint" and known.question is not None:
        tokens += known.question.mean + model.n_memory_tokens
    elif stage.stage != "base" and known.document is not None and known.documents is not None:
        tokens += known.documents.mean * (known.document.mean + model.n_memory_tokens)
    return batch_size * tokens


def _step_bytes(
    stage: StageConfig,
    engine: EngineConfig,
    micro: int,
    model: ClaraConfig,
    meta: MetaModel,
    longest: Longest,
) -> dict[str, float]:
    """Of the forward passes of one micro-batch."""
    checkpointing = engine.gradient_checkpointing
    kept = meta.activation_bytes("generator", micro, longest.prompt, checkpointing=checkpointing)
    candidates = 0
    if stage.stage == "joint":
        kept += meta.activation_bytes("query_reasoner", micro, longest.encoded, checkpointing=checkpointing)
        # Gathered in fp16 and scored in fp32.
        candidates = micro * stage.candidates.n * model.n_memory_tokens * meta.sizes.hidden_size * 6
    elif stage.stage != "base":
        n_texts = micro * longest.documents
        kept += meta.activation_bytes("compressor", n_texts, longest.encoded, checkpointing=checkpointing)
    # Logits in the model's type and in fp32, and the gradient of the latter.
    logits = micro * longest.answer * meta.sizes.vocab_size * (_DTYPE_BYTES[engine.dtype] + 8)
    return {"activations": kept, "logits": logits, "candidates": candidates}


def _state_bytes(n_weights: int, n_trained: int, engine: EngineConfig, zero: int, workers: int) -> dict[str, float]:
    """Weights, gradients and optimiser state of one of ``workers``.

    ZeRO 1 divides the optimiser state over the workers, 2 the gradients too, 3 the weights too, frozen ones included.
    What the configuration offloads is in CPU memory under the ZeRO stages that can.
    """
    size = _DTYPE_BYTES[engine.dtype]
    # The torch engine and ZeRO 0 train in fp32, whatever the base has.
    trained_size = size if engine.kind == "deepspeed" and zero > 0 else 4
    copy = 4 if trained_size < 4 else 0
    share = [1 / workers if zero >= stage else 1.0 for stage in (1, 2, 3)]
    parts = {
        "weights": share[2] * ((n_weights - n_trained) * size + n_trained * trained_size),
        "gradients": share[1] * n_trained * trained_size,
        "optimizer": share[0] * n_trained * (_ADAM_BYTES + copy),
    }
    away = {"none": (), "optimizer": ("optimizer",), "all": ("optimizer", "weights")}[engine.offload]
    moved = [name for name in away if zero == 3 or (zero > 0 and engine.offload == "optimizer")]
    host = sum(parts[name] for name in moved)
    return parts | dict.fromkeys(moved, 0.0) | {"host": host}


def table(plan: RunPlan) -> str:
    """The plan for people."""
    sizes, model = plan.sizes, plan.model
    lines = [
        f"model     {model.base_model}: {_millions(sizes.base)} weights, D {sizes.hidden_size}, {sizes.n_layers} layers"
        f"; LoRA r {model.lora.r}, {_millions(max(sizes.roles.values()))} a role; M {model.n_memory_tokens}"
        f" (compression rate {model.compression_rate})"
    ]
    for stage in plan.stages:
        workers, accumulation, micro = stage.batch
        epochs = "data not there yet" if stage.epochs is None else f"{stage.epochs:.2f} epochs of {stage.n_examples:,}"
        tokens = "not measured"
        if stage.step_tokens is not None:
            tokens = f"{stage.step_tokens:,.0f} a step, {stage.steps * stage.step_tokens:,.0f} in all"
        lines += [
            f"stage     {stage.key}",
            f"  steps   {stage.steps:,} of {workers * accumulation * micro} examples"
            f" ({workers} workers x {accumulation} accumulated x {micro}): {epochs}",
            f"  trained {_named(stage.trained)}",
            f"  frozen  {_named(stage.frozen)}",
            f"  tokens  {tokens}",
            f"  longest {stage.longest.encoded} tokens encoded, {stage.longest.prompt} in a prompt,"
            f" {stage.longest.answer} in an answer",
            f"  {'GB a worker':<14}" + "".join(f"{name:>13}" for name in _COLUMNS),
        ]
        for zero, memory in stage.memory.items():
            mark = " <-" if zero == stage.zero_stage else ""
            values = [getattr(memory, name) for name in _COLUMNS]
            lines.append(f"  {f'ZeRO {zero}':<14}" + "".join(f"{value / 1e9:>13.3f}" for value in values) + mark)
    return "\n".join(lines)


def to_json(plan: RunPlan) -> dict[str, Any]:
    """The plan for programs."""
    from dataclasses import asdict

    stages = []
    for stage in plan.stages:
        memory = {str(zero): {**asdict(m), "total": m.total} for zero, m in stage.memory.items()}
        stages.append({**asdict(stage), "epochs": stage.epochs, "memory": memory})
    return {"model": plan.model.model_dump(mode="json"), "sizes": asdict(plan.sizes), "stages": stages}


def _named(weights: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {_millions(n)}" for name, n in weights.items()) or "nothing"


def _millions(n: int) -> str:
    return f"{n / 1e9:.2f} G" if n >= 1e9 else f"{n / 1e6:.2f} M" if n >= 1e5 else f"{n:,}"
