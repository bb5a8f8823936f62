"""Loading a base LLM and finding its parts."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from clara_dist.errors import ModelError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_base(base: str, *, revision: str | None, dtype: str, device: str | torch.device) -> PreTrainedModel:
    """Any decoder LLM that `AutoModelForCausalLM` loads, frozen. Never runs code from the model's repository.

    Raises:
        ModelError: It cannot be loaded.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base, revision=revision, dtype=DTYPES[dtype], trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load the base model {base}", got=error, hint="check base_model") from error
    return model.requires_grad_(False).to(device)


def load_tokenizer(path: str, *, revision: str | None = None) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a base LLM or of a model directory."""
    try:
        return AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load the tokenizer of {path}", got=error) from error


def resolve_base(recorded: str, model_dir: Path | None, override: str | None) -> str:
    """Where the base is: the override, else the recorded place, else that place beside the model directory."""
    if override is not None:
        return override
    if model_dir is not None and not Path(recorded).is_dir() and (model_dir / recorded).is_dir():
        return str(model_dir / recorded)
    return recorded


def stop_ids(model: PreTrainedModel) -> list[int]:
    """The base's own end-of-text ids (``generation_config.eos_token_id`` may be one id or several)."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    if configured is None:
        return []
    return [configured] if isinstance(configured, int) else list(configured)


def soft_cap(model: PreTrainedModel) -> float | None:
    """Gemma's final logit soft cap, if the architecture has one."""
    return getattr(model.config, "final_logit_softcapping", None)
