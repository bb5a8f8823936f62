"""Loading a base LLM and finding its parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
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


@dataclass(frozen=True)
class LogitsFinish:
    """What an architecture does to the LM head's output.

    Attributes:
        scale: Factor (Cohere multiplies, Granite divides).
        soft_cap: Gemma's ``cap * tanh(logits / cap)``.
    """

    scale: float = 1.0
    soft_cap: float | None = None

    @classmethod
    def of(cls, model: PreTrainedModel) -> LogitsFinish:
        """Read it from the model's configuration."""
        config = model.config
        scale = getattr(config, "logit_scale", None) or 1 / getattr(config, "logits_scaling", 1.0)
        return cls(scale, getattr(config, "final_logit_softcapping", None))

    def __call__(self, logits: Tensor) -> Tensor:
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)


@torch.no_grad()
def require_known_head(model: PreTrainedModel) -> None:
    """Check, by a forward pass of one token, that the LM head and `LogitsFinish` give the model's own logits.

    Raises:
        ModelError: The architecture does something else to its logits, so losses and answers would be wrong.
    """
    hidden: list[Tensor] = []
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError("the base model has no LM head", got=type(model).__name__, expected="a decoder LLM")
    hook = head.register_forward_pre_hook(lambda module, inputs: hidden.append(inputs[0]))
    try:
        own = model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False).logits
    finally:
        hook.remove()
    ours = LogitsFinish.of(model)(head(hidden[-1]))
    if not torch.allclose(own.float(), ours.float(), rtol=1e-2, atol=1e-3 * float(own.abs().max())):
        raise ModelError(
            "this architecture does something to its logits that is not known here",
            got=type(model).__name__,
            expected="an LM head, possibly with a scale or a soft cap",
        )
