"""Training checkpoints: safetensors and JSON, written whole or not at all.

::

    DIR/step-00000100/weights.safetensors     trainable weights, fp32, by parameter name
    DIR/step-00000100/optimizer.safetensors   "<parameter>/<state>"
    DIR/step-00000100/rng.safetensors         "<rank>/cpu", "<rank>/cuda"
    DIR/step-00000100/state.json              step, and the settings that decide what the next step computes
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clara_dist.errors import CheckpointError
from clara_dist.training.collectives import Group
from clara_dist.training.engine import EngineState

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        step: Optimiser steps done.
        settings: What the run must share with the one that wrote it (see `require_same`).
        engine: Weights and optimiser state.
        rng: Random state by ``"<rank>/<device kind>"``.
    """

    step: int
    settings: dict[str, Any]
    engine: EngineState
    rng: dict[str, Tensor]


def save_checkpoint(directory: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint beside its place and rename it; then drop all but the ``keep`` newest. For rank 0."""
    directory.mkdir(parents=True, exist_ok=True)
    for unfinished in directory.glob(".step-*"):  # of a writer that was killed; nobody else writes here
        shutil.rmtree(unfinished)
    target = directory / f"step-{checkpoint.step:08d}"
    staging = directory / f".{target.name}.{uuid.uuid4().hex[:8]}"
    staging.mkdir()
    try:
        save_file(checkpoint.engine.weights, staging / "weights.safetensors")
        states = checkpoint.engine.optimizer
        save_file(
            {f"{p}/{key}": t for p, s in states.items() for key, t in s.items()}, staging / "optimizer.safetensors"
        )
        save_file(checkpoint.rng, staging / "rng.safetensors")
        head = {"format_version": FORMAT_VERSION, "step": checkpoint.step, "settings": checkpoint.settings}
        (staging / "state.json").write_text(json.dumps(head, indent=2) + "\n", encoding="utf-8")
        if target.exists():
            shutil.rmtree(target)
        os.replace(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    for old in checkpoint_paths(directory)[:-keep]:
        shutil.rmtree(old)
    return target


def checkpoint_paths(directory: Path) -> list[Path]:
    """The complete checkpoints of a stage, oldest first. Unfinished ones start with a dot."""
    return sorted(directory.glob("step-*"))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: A file is missing or damaged, or the format is another one.
    """
    try:
        head = json.loads((path / "state.json").read_text(encoding="utf-8"))
        weights = load_file(path / "weights.safetensors")
        flat = load_file(path / "optimizer.safetensors")
        rng = load_file(path / "rng.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot read the checkpoint {path}", got=error, hint="delete it to go on from the one before"
        ) from error
    if head.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(f"{path} has another format", got=head.get("format_version"), expected=FORMAT_VERSION)
    states: dict[str, dict[str, Tensor]] = {name: {} for name in weights}
    for key, tensor in flat.items():
        name, _, state = key.rpartition("/")
        states[name][state] = tensor
    return Checkpoint(head["step"], head["settings"], EngineState(weights, states), rng)


def require_same(saved: Mapping[str, Any], current: Mapping[str, Any], where: Path) -> None:
    """Refuse to go on from a checkpoint of another run.

    Raises:
        CheckpointError: Names every setting that differs, with both values.
    """
    old, new = _flatten(saved), _flatten(current)
    differing = [
        f"{key}: {old.get(key, 'absent')} there, {new.get(key, 'absent')} here"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, "absent") != new.get(key, "absent")
    ]
    if differing:
        raise CheckpointError(
            f"{where} belongs to a run with other settings",
            got="; ".join(differing),
            hint="restore those settings, or start anew in another run_dir",
        )


def load_weights(parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]) -> None:
    """Copy checkpointed weights into a module, before its engine is built.

    Raises:
        CheckpointError: Names or shapes differ.
    """
    expected = {name: tuple(p.shape) for name, p in parameters.items()}
    found = {name: tuple(t.shape) for name, t in weights.items()}
    if expected != found:
        differing = sorted(set(expected.items()) ^ set(found.items()))
        raise CheckpointError("the checkpoint's weights do not fit the model", got=differing[:3])
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def rng_state(group: Group) -> dict[str, Tensor]:
    """The random state of all workers. Collective."""
    states = {"cpu": torch.get_rng_state()}
    if group.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(group.device)
    gathered = {kind: group.gather(state) for kind, state in states.items()}
    return {f"{rank}/{kind}": state for kind, ranks in gathered.items() for rank, state in enumerate(ranks)}


def restore_rng(rng: Mapping[str, Tensor], group: Group) -> None:
    """Set this worker's random state; a worker that the saved run did not have keeps its own."""
    if f"{group.rank}/cpu" in rng:
        torch.set_rng_state(rng[f"{group.rank}/cpu"])
    if group.device.type == "cuda" and f"{group.rank}/cuda" in rng:
        torch.cuda.set_rng_state(rng[f"{group.rank}/cuda"], group.device)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= _flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat
