"""A user's own DeepSpeed JSON beside our settings: what both can say is said once, or said alike."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# What DeepSpeed is told by us in any case, from the stage's settings.
OURS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
)
DTYPE_SECTIONS = {"bf16": "bfloat16", "fp16": "float16"}
_SCHEDULES = {"WarmupLR": "constant", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}
_FLAGS = {"torch_adam": True, "adam_w_mode": True, "warmup_type": "linear", "warmup_min_lr": 0, "eps": 1e-8}


def read_deepspeed_json(value: Any) -> dict[str, Any]:
    """The JSON without what it leaves to us, which Hugging Face users write as ``"auto"``.

    Args:
        value: The object itself, or the path of a file with it.

    Raises:
        ValueError: The file cannot be read, or holds no JSON object.
    """
    if isinstance(value, str):
        try:
            value = json.loads(Path(value).expanduser().read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"deepspeed_json: {error}") from error
    if not isinstance(value, Mapping):
        raise ValueError(f"deepspeed_json is neither a JSON object nor the path of one: {value!r}")
    return _without_auto(value)


def stated_fields(settings: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """What the JSON says of fields of ours: by field the JSON's key and the field's value.

    Raises:
        ValueError: It asks for both 16-bit types, or for parameters offloaded without the optimiser.
    """
    stated: dict[str, tuple[str, Any]] = {}
    zero = settings.get("zero_optimization", {})
    if "stage" in zero:
        stated["zero_stage"] = ("zero_optimization.stage", zero["stage"])
    devices = {key: zero[key].get("device", "none") for key in ("offload_optimizer", "offload_param") if zero.get(key)}
    offloaded = [key for key, device in devices.items() if device not in ("none", None)]
    if offloaded == ["offload_param"]:
        raise ValueError("deepspeed_json offloads parameters but not the optimizer: add offload_optimizer")
    if devices:
        value = ("none", "optimizer", "all")[len(offloaded)]
        stated["offload"] = (f"zero_optimization.{' and '.join(devices)}", value)
    enabled = {key: settings[key]["enabled"] for key in ("bf16", "fp16") if "enabled" in settings.get(key, {})}
    if all(enabled.get(key) for key in ("bf16", "fp16")):
        raise ValueError("deepspeed_json enables both bf16 and fp16")
    for key, dtype in DTYPE_SECTIONS.items():
        if enabled.get(key):
            stated["dtype"] = (f"{key}.enabled", dtype)
    return stated


def switches_off(settings: Mapping[str, Any], dtype: str) -> str | None:
    """The key by which the JSON would switch off the type that is computed in; None if it does not."""
    off = (
        key for key, name in DTYPE_SECTIONS.items() if name == dtype and settings.get(key, {}).get("enabled") is False
    )
    return next((f"{key}.enabled" for key in off), None)


def conflicts(
    settings: Mapping[str, Any], *, batch_size: int, accumulation: int, workers: int, steps: int, optimizer: Any
) -> list[str]:
    """Where the JSON contradicts a stage, a line each.

    Args:
        settings: As `read_deepspeed_json` returns it.
        batch_size: Of a step, over all workers.
        accumulation: Micro-batches of a step.
        workers: Data-parallel workers.
        steps: Of the stage.
        optimizer: The stage's `OptimizerConfig`.
    """
    ours: dict[str, tuple[str, Any]] = {
        "train_batch_size": ("batch_size", batch_size),
        "train_micro_batch_size_per_gpu": ("the examples of a micro-batch", batch_size // (accumulation * workers)),
        "gradient_accumulation_steps": ("gradient_accumulation", accumulation),
        "gradient_clipping": ("optimizer.clip_norm", optimizer.clip_norm),
        "optimizer.type": ("optimizer.name", "AdamW" if optimizer.name == "adamw" else optimizer.name),
        "optimizer.params.lr": ("optimizer.lr", optimizer.lr),
        "optimizer.params.betas": ("optimizer.betas", list(optimizer.betas)),
        "optimizer.params.weight_decay": ("optimizer.weight_decay", optimizer.weight_decay),
        "scheduler.params.warmup_max_lr": ("optimizer.lr", optimizer.lr),
        "scheduler.params.warmup_num_steps": ("the steps of the warm-up", optimizer.n_warmup(steps)),
        "scheduler.params.total_num_steps": ("steps", steps),
        "scheduler.params.cos_min_ratio": ("optimizer.min_lr_ratio", optimizer.min_lr_ratio),
    }
    scheduler = next((name for name, schedule in _SCHEDULES.items() if schedule == optimizer.schedule), None)
    ours["scheduler.type"] = (f"optimizer.schedule = {optimizer.schedule}, there", scheduler)
    for section in ("optimizer", "scheduler"):
        ours |= {f"{section}.params.{key}": ("what is supported", value) for key, value in _FLAGS.items()}
    return [
        f"{key} = {value!r}, but {ours[key][0]} is {ours[key][1]!r}"
        if key in ours
        else f"{key} = {value!r} has no match"
        for key, value in _leaves({key: settings[key] for key in OURS if key in settings})
        if key not in ours or value != ours[key][1]
    ]


def _without_auto(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Without ``"auto"``, and without sections of which nothing is left by that."""
    cleaned: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            inner = _without_auto(value)
            if inner or not value:
                cleaned[key] = inner
        elif value != "auto":
            cleaned[key] = value
    return cleaned


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
