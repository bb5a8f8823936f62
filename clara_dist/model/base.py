"""Loading a base LLM and finding its parts."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import is_flash_attn_2_available

from clara_dist.config.model import Attention, Dtype, Quantization
from clara_dist.errors import ModelError

DTYPES: dict[Dtype, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_base(
    base: str,
    *,
    revision: str | None,
    dtype: Dtype,
    device: str | torch.device,
    attn_implementation: Attention | None = None,
    quantization: Quantization | None = None,
    token: str | bool | None = None,
) -> PreTrainedModel:
    """Any decoder LLM that `AutoModelForCausalLM` loads, frozen. Never runs code from the model's repository.

    Args:
        base: Directory or hub id.
        revision: Of a hub id.
        dtype: What it computes in.
        device: Where it goes.
        attn_implementation: None leaves it to `choose_attention`.
        quantization: Linear layers in 8 bits (LLM.int8()) or 4 (NF4), quantised while they are read.
        token: For a hub id that is private or gated; None is the one of `hf auth login`.

    Raises:
        ModelError: It cannot be loaded, or not in this way on this machine.
    """
    device = torch.device(device)
    quantised: dict[str, Any] = {}
    if quantization is not None:
        # Quantised layers are made where they stay: moving them later would move packed bytes behind PEFT's back.
        config = _bitsandbytes_config(quantization, DTYPES[dtype], device)
        quantised = {"quantization_config": config, "device_map": {"": device}}
    try:
        config = AutoConfig.from_pretrained(base, revision=revision, token=token, trust_remote_code=False)
        if attn_implementation is None:
            attn_implementation = choose_attention(
                device.type, dtype, supported=_flash_is_supported(config), installed=is_flash_attn_2_available()
            )
        model = AutoModelForCausalLM.from_pretrained(
            base,
            revision=revision,
            token=token,
            config=config,
            dtype=DTYPES[dtype],
            attn_implementation=attn_implementation,
            trust_remote_code=False,
            use_safetensors=True,
            **quantised,
        )
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"cannot load the base model {base}", got=error, hint="check base_model") from error
    return model.requires_grad_(False) if quantised else model.requires_grad_(False).to(device)


class BaseLoader(Protocol):
    """`load_base` of which only the place of the base is open."""

    def __call__(self, base: str, *, revision: str | None) -> PreTrainedModel: ...


def base_loader(
    dtype: Dtype,
    device: str | torch.device,
    attn_implementation: Attention | None,
    quantization: Quantization | None,
    token: str | bool | None = None,
) -> BaseLoader:
    """`load_base` in one way."""
    return partial(
        load_base,
        dtype=dtype,
        device=device,
        attn_implementation=attn_implementation,
        quantization=quantization,
        token=token,
    )


def choose_attention(device_type: str, dtype: Dtype, *, supported: bool, installed: bool) -> Attention | None:
    """The attention to use where nobody asked for one.

    Returns:
        ``flash_attention_2`` on a GPU in half precision, where the package is installed and the architecture knows it;
        else None, which is transformers' own choice: SDPA, or eager for an architecture without it.
    """
    if device_type == "cuda" and dtype != "float32" and supported and installed:
        return "flash_attention_2"
    return None


def quantization_of(model: PreTrainedModel) -> Quantization | None:
    """How a loaded base is quantised, by this package or by whoever published it.

    Raises:
        ModelError: Otherwise than by bitsandbytes; nothing here was tested with that.
    """
    config = getattr(model, "quantization_config", None) or getattr(model.config, "quantization_config", None)
    if config is None:
        return None
    if getattr(model, "is_loaded_in_8bit", False):
        return "8bit"
    if getattr(model, "is_loaded_in_4bit", False):
        return "4bit"
    raise ModelError("this base is quantised in an unknown way", got=config, expected="bitsandbytes, 8 or 4 bits")


def _flash_is_supported(config: PretrainedConfig) -> bool:
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return bool(getattr(model_class, "_supports_flash_attn", False))


def _bitsandbytes_config(quantization: Quantization, dtype: torch.dtype, device: torch.device) -> BitsAndBytesConfig:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"a {quantization} base needs the package bitsandbytes",
            hint="pip install 'clara-dist[quantized]', on a machine with a CUDA GPU",
        )
    # 8 bits run on a CPU, slowly. A model in 4 bits gave other numbers there from one forward pass to the next
    # (bitsandbytes 0.50.2, transformers 5.23).
    if device.type != "cuda" and (quantization == "4bit" or device.type != "cpu"):
        raise ModelError(f"a {quantization} base needs a CUDA GPU", got=f"device {device}", hint="pass device='cuda'")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError("there is no CUDA GPU for the quantised base", hint="8bit also runs with device='cpu'")
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


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


@torch.no_grad()
def replace_rows(model: PreTrainedModel, rows: Mapping[str, Tensor]) -> None:
    """Put other first rows into a base's ``embed_tokens`` and ``lm_head``.

    Raises:
        ModelError: They do not fit.
    """
    if not rows:
        return
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head.weight is embeddings.weight:  # tied; each may get rows of its own
        head.weight = nn.Parameter(embeddings.weight.clone(), requires_grad=False)
    modules = {"embed_tokens": embeddings, "lm_head": head}
    for name, changed in rows.items():
        known = modules[name].weight.shape if name in modules else None
        if known is None or changed.shape[1:] != known[1:] or len(changed) > known[0]:
            raise ModelError(
                "the changed embeddings do not fit the base model",
                got=f"{name} {tuple(changed.shape)}",
                expected={name: tuple(module.weight.shape) for name, module in modules.items()},
            )
        modules[name].weight[: len(changed)] = changed.to(modules[name].weight)


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
