"""From a model directory to the published layout, so that a model trained here runs in the published code."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clara_dist.config.model import SYSTEM_PROMPT, ClaraConfig, Role
from clara_dist.errors import CheckpointError
from clara_dist.model import files, hub
from clara_dist.model.apple.layout import (
    ADAPTER_OF_ROLE,
    ADAPTERS_FILE,
    CONFIG_FILE,
    EMBEDDINGS,
    HEAD,
    MATRICES_FILE,
    STAGE_NAMES,
    STAND_IN_HEAD,
    TARGET_MODULES,
    AdapterKey,
)
from clara_dist.model.apple.outline import BaseOutline
from clara_dist.model.apple.report import Report

REPORT_FILE = "export-report.json"


def export_apple(model: str | Path, out: str | Path, *, base: str | None = None, generation_top_k: int = 5) -> Report:
    """Write a model directory in the published layout.

    Tensors are bfloat16, as published, where every value of their file survives that; else float32.

    Args:
        model: Model directory.
        out: Directory to write; replaced as a whole if it exists. ``export-report.json`` in it lists every tensor.
        base: Where the base LLM is, if not where the model says.
        generation_top_k: Documents that the published code answers from.

    Raises:
        CheckpointError: The model has something that the published code cannot run.
        ModelError: The model or its base LLM cannot be read.
    """
    path = Path(model)
    config = files.read_config(path)
    _require_expressible(config)
    base = base or config.base_model
    outline = BaseOutline.of(base, hub.commit_of(base, config.base_revision if base == config.base_model else None))
    full = config.model_copy(update={"lora": config.lora.model_copy(update={"target_modules": TARGET_MODULES})})
    _, shapes = outline.lora(full)
    report = Report(str(path), str(out))
    if config.base_revision is not None and base == config.base_model:
        report.notes.append(
            f"commit {config.base_revision} of the base has no place: the published code loads the newest"
        )
    adapters = {ADAPTER_OF_ROLE[role]: _adapter(path, role, shapes, report) for role in _roles(config, report)}
    rows = _read(path / files.ROWS_FILE)
    changed = _read(path / files.BASE_ROWS_FILE) if (path / files.BASE_ROWS_FILE).exists() else {}
    matrices = {
        EMBEDDINGS: _matrix(outline, config, EMBEDDINGS, torch.cat([rows["memory"], rows["frame"]]), changed),
        HEAD: _matrix(outline, config, HEAD, rows.get("head"), changed),
    }
    _report_rows(rows, changed, report)
    with files.replaced_directory(Path(out), ADAPTERS_FILE) as staging:
        outline.tokenizer.save_pretrained(staging)
        settings = _settings(config, base, generation_top_k, stand_in_head="head" not in rows)
        (staging / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        torch.save({name: _as_published(state) for name, state in adapters.items()}, staging / ADAPTERS_FILE)
        torch.save(_as_published(matrices), staging / MATRICES_FILE)
        report.write(staging / REPORT_FILE)
    return report


def _require_expressible(config: ClaraConfig) -> None:
    """Refuse what the published code would run otherwise than it was trained."""
    targets = config.lora.target_modules
    rate = config.doc_max_tokens // config.n_memory_tokens
    found = {
        "lora alpha": (config.lora.scale_alpha, 2 * config.lora.r),
        "system_prompt": (config.system_prompt, SYSTEM_PROMPT),
        "document_template": (config.document_template, "{text}"),
        "lora.target_modules": (targets, "all-linear" if targets == "all-linear" else tuple(TARGET_MODULES)),
        "n_memory_tokens": (config.n_memory_tokens, config.doc_max_tokens // rate),
    }
    if targets != "all-linear" and set(targets) <= set(TARGET_MODULES):
        del found["lora.target_modules"]  # the layers without an adapter get one that adds nothing
    for name, (got, expected) in found.items():
        if got != expected:
            raise CheckpointError(f"the published layout has no place for this {name}", got=got, expected=expected)


def _roles(config: ClaraConfig, report: Report) -> list[Role]:
    """The early stages were published without a reasoner."""
    if config.stage == "joint":
        return list(config.roles)
    report.notes.append(f"stage {config.stage}: the query_reasoner is not written, as no early stage has one there")
    return [role for role in config.roles if role != "query_reasoner"]


def _adapter(path: Path, role: Role, shapes: dict[str, tuple[int, ...]], report: Report) -> dict[str, Tensor]:
    name = ADAPTER_OF_ROLE[role]
    state: dict[str, Tensor] = {}
    for peft_name, tensor in _read(path / role / files.ADAPTER_FILE).items():
        key = AdapterKey.parse(peft_name.removeprefix("base_model.model."))
        if key is None or shapes.get(key.peft) != tuple(tensor.shape):
            raise CheckpointError(
                f"the published layout has no place for a tensor of the {role}",
                got=f"{peft_name} {tuple(tensor.shape)}",
                expected=f"LoRA of {', '.join(TARGET_MODULES)}",
            )
        state[key.published] = tensor
        report.add(f"{role}/{files.ADAPTER_FILE}: {peft_name}", tensor, f"{ADAPTERS_FILE}: {name}: {key.published}")
    missing = shapes.keys() - {f"base_model.model.{key}" for key in state}
    for peft_name in sorted(missing):
        state[peft_name.removeprefix("base_model.model.")] = torch.zeros(shapes[peft_name])
    if missing:
        report.notes.append(f"{name}: {len(missing)} tensors of layers without LoRA are zero, which adds nothing there")
    return state


def _matrix(
    outline: BaseOutline, config: ClaraConfig, name: str, added: Tensor | None, changed: dict[str, Tensor]
) -> Tensor:
    """The whole matrix: known rows (the base's, or those that an import kept), then those of the added tokens."""
    tokenizer = outline.clara_tokenizer(config)
    first = tokenizer.first_memory_id
    known = changed.get("embed_tokens" if name == EMBEDDINGS else "lm_head")
    if known is None:
        known = torch.cat([chunk for _, chunk in outline.chunks(name, first)])
    if added is None:
        # Nothing here emits an added token. With the row of a token that is never an answer its logit is that token's,
        # and the lower id wins a tie: the published code does not emit one either.
        added = known[tokenizer.pad_id].expand(tokenizer.n_added_tokens, -1)
    return torch.cat([known.float(), added.float()])


def _report_rows(rows: dict[str, Tensor], changed: dict[str, Tensor], report: Report) -> None:
    for name, tensor in rows.items():
        key = HEAD if name == "head" else EMBEDDINGS
        report.add(f"{files.ROWS_FILE}: {name}", tensor, f"{MATRICES_FILE}: {key}, rows of added tokens")
    for name, tensor in changed.items():
        key = HEAD if name == "lm_head" else EMBEDDINGS
        report.add(f"{files.BASE_ROWS_FILE}: {name}", tensor, f"{MATRICES_FILE}: {key}, known rows")
    if "head" not in rows:
        report.notes.append("the LM-head rows of the added tokens are stand-ins: no model made here emits such a token")


def _as_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    half = {name: tensor.to(torch.bfloat16) for name, tensor in state.items()}
    exact = all(torch.equal(half[name].float(), tensor.float()) for name, tensor in state.items())
    return half if exact else {name: tensor.float() for name, tensor in state.items()}


def _settings(config: ClaraConfig, base: str, generation_top_k: int, *, stand_in_head: bool) -> dict[str, object]:
    """A ``config.json`` with all fields of a published one that their code reads."""
    return {
        "model_type": "CLaRa",
        "decoder_model_name": os.path.abspath(base) if os.path.isdir(base) else base,
        "doc_max_length": config.doc_max_tokens,
        "compr_rate": config.doc_max_tokens // config.n_memory_tokens,
        "lora": True,
        "lora_r": config.lora.r,
        "lora_compressor": False,
        "lora_r_compressor": config.lora.r,
        "sep": config.separator,
        "different_mem_tokens": config.distinct_memory_tokens,
        "optimize_mem_tokens": True,
        "generation_top_k": generation_top_k,
        "training_stage": STAGE_NAMES.get(config.stage, "stage1"),
        "training_form": "both_separately",
        "ae_mode": "token",
        "compr_model_name": None,
        "compr_use_mlp": False,
        "quantization": "no",
        "load_adapters": True,
        "load_pretrained_checkpoint": False,
        "kbtc_training": False,
        "pure_inference": False,
        "stage2_retrieval_top_n": 1,
        "max_new_tokens": 128,
        "device_map": None,
        "attn_implementation": None,
        STAND_IN_HEAD: stand_in_head,
    }


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}", got=error) from error
