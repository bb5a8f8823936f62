"""What each stage trains, reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from clara_dist.config.model import ClaraConfig, Dtype, Role
from clara_dist.config.training import EngineConfig, StageConfig
from clara_dist.errors import ModelError, TrainingError
from clara_dist.model import ClaraModel, ClaraTokenizer
from clara_dist.model.base import load_base, load_tokenizer
from clara_dist.model.files import replaced_directory
from clara_dist.retrieval.bank import MemoryBank
from clara_dist.retrieval.opening import open_bank
from clara_dist.retrieval.sharded import ShardedSearcher
from clara_dist.training.batches import Collate
from clara_dist.training.collate import CompressionCollator, JointCollator, TextCollator
from clara_dist.training.engine import Trainee
from clara_dist.training.steps import BaseStep, CompressionStep, JointStep
from clara_dist.training.stopwatch import Stopwatch

TRAINED_ROLES: dict[str, tuple[Role, ...]] = {
    "compression": ("compressor", "generator"),
    "instruct": ("compressor", "generator"),
    "joint": ("query_reasoner", "generator"),
}


@dataclass(frozen=True)
class BuiltStage:
    """A stage ready to be trained.

    Attributes:
        trainee: What is trained.
        collate: From examples to its batches.
        settings: Identity of what it reads besides its examples; part of every checkpoint.
        stopwatch: Of the step.
        save: Writes the stage's model directory, whole or not at all, with these trained weights; uses the module up.
    """

    trainee: Trainee
    collate: Collate
    settings: dict[str, Any]
    stopwatch: Stopwatch
    save: Callable[[Path, Mapping[str, Tensor]], None]


def build_stage(
    stage: StageConfig,
    source: str | ClaraConfig,
    engine: EngineConfig,
    device: torch.device,
    searcher: ShardedSearcher | None = None,
) -> BuiltStage:
    """Load the model of a stage and choose what it trains.

    Args:
        stage: The stage.
        source: A model directory, or the description of a new model.
        engine: Decides the model's dtype and gradient checkpointing.
        device: Where it runs.
        searcher: Searches the store of a joint stage; None: this process does.

    Raises:
        TrainingError: The stage would train nothing, or a search would find fewer documents than it asks for.
        FingerprintMismatchError: The store of a joint stage is not this model's.
    """
    built = (
        _base_stage(stage, source, engine, device)
        if stage.stage == "base"
        else _clara_stage(stage, source, engine, device, searcher)
    )
    if not built.trainee.parameters:
        raise TrainingError(f"stage {stage.stage} trains nothing", hint="check lora.target_modules and roles")
    built.trainee.step.train()
    return built


def _base_stage(
    stage: StageConfig, source: str | ClaraConfig, engine: EngineConfig, device: torch.device
) -> BuiltStage:
    if isinstance(source, str) or stage.base_dir is None:
        raise TrainingError(
            "stage base makes the base LLM of a new model", got=f"model = {source}", expected="a model description"
        )
    model = _new_base(Path(stage.base_dir), stage.seed, engine.dtype).to(device)
    model.requires_grad_(True)
    if engine.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    hf = load_tokenizer(stage.base_dir)
    step = BaseStep(model)
    parameters = dict(step.named_parameters())
    outer = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    matrices = frozenset(name for name, p in parameters.items() if p.ndim == 2 and id(p) not in outer)

    def save(path: Path, weights: Mapping[str, Tensor]) -> None:
        _put(step, weights)
        with replaced_directory(path, "config.json") as staging:
            model.save_pretrained(staging)
            hf.save_pretrained(staging)

    trainee = Trainee(step, parameters, lambda name: "base", matrices)
    return BuiltStage(
        trainee,
        TextCollator(ClaraTokenizer(hf, source), _cuts_answers(stage)),
        {"base": model.config.to_diff_dict()},
        step.stopwatch,
        save,
    )


def _new_base(base_dir: Path, seed: int, dtype: Dtype) -> PreTrainedModel:
    if any(base_dir.glob("*.safetensors")):
        return load_base(str(base_dir), revision=None, dtype=dtype, device="cpu")
    try:
        config = AutoConfig.from_pretrained(str(base_dir), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"{base_dir} has no config.json of a causal LLM", got=error) from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # The engine decides what it trains in; config.json may name the type that a published model is stored in.
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _clara_stage(
    stage: StageConfig,
    source: str | ClaraConfig,
    engine: EngineConfig,
    device: torch.device,
    searcher: ShardedSearcher | None,
) -> BuiltStage:
    attention = engine.attn_implementation
    if isinstance(source, str):
        clara = ClaraModel.from_pretrained(source, dtype=engine.dtype, device=device, attn_implementation=attention)
    else:
        clara = ClaraModel.from_base(
            source, dtype=engine.dtype, device=device, attn_implementation=attention, seed=stage.seed
        )
    identity = clara.fingerprint_fields()
    settings: dict[str, Any] = {"model": identity | {"lora": clara.config.lora.model_dump(mode="json")}}
    if stage.stage == "joint":
        bank = _bank(stage, identity, device, searcher)
        settings["store"] = {"fingerprint": bank.store.fingerprint.digest, "version": bank.store.version}
        if clara.config.stage != "joint":
            clara.copy_role("compressor", "query_reasoner")
        step: CompressionStep | JointStep = JointStep(clara, bank, stage)
        collate: Collate = JointCollator(clara.tokenizer, bank, _cuts_answers(stage))
    else:
        step = CompressionStep(clara, stage.mse_weight)
        collate = CompressionCollator(clara.tokenizer, _cuts_answers(stage))
    clara.set_trainable(TRAINED_ROLES[stage.stage], memory_embeddings=stage.stage != "joint")
    trained = clara.trainable_parameters()
    frozen = {name: t.detach().to("cpu", copy=True) for name, t in clara.added_tensors().items() if name not in trained}
    if engine.gradient_checkpointing:
        clara.enable_gradient_checkpointing()

    def save(path: Path, weights: Mapping[str, Tensor]) -> None:
        _put(clara, {**weights, **frozen})
        clara.config = clara.config.model_copy(update={"stage": stage.stage})
        clara.save_pretrained(path)

    trainee = Trainee(step, trained, lambda name: str(clara.role_of(name)))
    return BuiltStage(trainee, collate, settings, step.stopwatch, save)


def _bank(
    stage: StageConfig, identity: Mapping[str, str], device: torch.device, searcher: ShardedSearcher | None
) -> MemoryBank:
    assert stage.store is not None, "StageConfig requires it"
    candidates = stage.candidates
    bank = open_bank(
        stage.store,
        identity,
        version=stage.store_version,
        where=candidates.where or None,
        device=device,
        searcher=searcher,
    )
    if stage.searches and bank.n_searched < candidates.n:
        raise TrainingError(
            f"the store {stage.store} has fewer documents than a search of the joint stage asks for",
            got=f"{bank.n_searched} documents" + (f" where {candidates.where}" if candidates.where else ""),
            expected=f"at least {candidates.n} (candidates.n), of which {stage.top_k} (top_k) are read",
            hint="lower candidates.n, widen candidates.where, or compress a larger corpus",
        )
    return bank


def _cuts_answers(stage: StageConfig) -> bool:
    return stage.max_truncated_answers > 0


def _put(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give parameters and buffers these values, type and all.

    DeepSpeed casts a whole module to its 16-bit type, frozen adapters included, and ZeRO 3 cuts it up. A compressor
    that was only rounded would already be another one to the store that it wrote.
    """
    places = dict(module.named_parameters()) | dict(module.named_buffers())
    for name, tensor in tensors.items():
        places[name].data = tensor
