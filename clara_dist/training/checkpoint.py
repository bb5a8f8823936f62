"""Training checkpoints: safetensors and JSON, on a disk or in an object store.

::

    FOLDER/step-00000100.weights.safetensors     trainable weights, fp32, by parameter name
    FOLDER/step-00000100.optimizer.safetensors   "<parameter>/<state>"
    FOLDER/step-00000100.rng.safetensors         "<rank>/cpu", "<rank>/cuda"
    FOLDER/step-00000100.json                    written last: step, settings, metrics, checksums of the three

A checkpoint is there when its JSON is. The frozen base is in none of the files.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from clara_dist.errors import CheckpointError
from clara_dist.store import files
from clara_dist.store.storage import Storage
from clara_dist.training.collectives import Group
from clara_dist.training.engine import EngineState, LossScale

FORMAT_VERSION = 2
_STEP = re.compile(r"step-(\d{8})\.")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        step: Optimiser steps done.
        settings: What the run must share with the one that wrote it (see `require_same`).
        engine: Weights and optimiser state.
        rng: Random state by ``"<rank>/<device kind>"``.
        metrics: What the evaluation at this very step found; empty if there was none.
    """

    step: int
    settings: dict[str, Any]
    engine: EngineState
    rng: dict[str, Tensor]
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Keep:
    """Which checkpoints are kept: the ``last`` newest, and the ``best`` best by a metric of the evaluation."""

    last: int
    best: int
    metric: str
    mode: Literal["min", "max"]

    def chosen(self, metrics: Mapping[int, Mapping[str, float]]) -> set[int]:
        """The steps to keep.

        Args:
            metrics: Of every checkpoint, by step.
        """
        return {*sorted(metrics)[-self.last :], *self.ranked(metrics)[: self.best]}

    def ranked(self, metrics: Mapping[int, Mapping[str, float]]) -> list[int]:
        """Steps that were evaluated, best first; of equals the later one."""
        sign = 1.0 if self.mode == "min" else -1.0
        values = {step: sign * found[self.metric] for step, found in metrics.items() if self.metric in found}
        return sorted((step for step in values if not math.isnan(values[step])), key=lambda step: (values[step], -step))


class CheckpointFolder:
    """The checkpoints of one stage. One worker writes, all read.

    Args:
        storage: Where the run is.
        folder: Path of the checkpoints in it.
    """

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage = storage
        self._folder = folder
        self.url = files.join(storage.url, folder)

    def save(self, checkpoint: Checkpoint, keep: Keep) -> None:
        """Write a checkpoint; when it is complete, drop those that are not to be kept."""
        optimizer = {f"{p}/{key}": t for p, states in checkpoint.engine.optimizer.items() for key, t in states.items()}
        parts = {"weights": checkpoint.engine.weights, "optimizer": optimizer, "rng": checkpoint.rng}
        checksums = {}
        for part, tensors in parts.items():
            data = save(tensors)
            checksums[part] = hashlib.sha256(data).hexdigest()
            self._storage.publish(self._path(checkpoint.step, f"{part}.safetensors"), data, exclusive=False)
        head = {
            "format_version": FORMAT_VERSION,
            "step": checkpoint.step,
            "settings": checkpoint.settings,
            "metrics": checkpoint.metrics,
            "loss_scale": asdict(scale) if (scale := checkpoint.engine.loss_scale) else None,
            "sha256": checksums,
        }
        text = json.dumps(head, indent=2) + "\n"
        self._storage.publish(self._path(checkpoint.step, "json"), text.encode(), exclusive=False)
        self._drop_all_but(keep.chosen(self.metrics()))

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, oldest first."""
        return sorted(_step_of(name) for name in self._storage.list_files(self._folder) if name.endswith(".json"))

    def metrics(self) -> dict[int, dict[str, float]]:
        """The metrics of every complete checkpoint that can be read, by step."""
        found = {}
        for step in self.steps():
            try:
                found[step] = self._head(step)["metrics"]
            except CheckpointError:
                found[step] = {}
        return found

    def load(self, step: int) -> Checkpoint:
        """Read a checkpoint.

        Raises:
            CheckpointError: A file is missing or damaged, or the format is another one.
        """
        head = self._head(step)
        weights, flat, rng = (self._tensors(step, part, head["sha256"]) for part in ("weights", "optimizer", "rng"))
        states: dict[str, dict[str, Tensor]] = {name: {} for name in weights}
        for key, tensor in flat.items():
            name, _, state = key.rpartition("/")
            states[name][state] = tensor
        loss_scale = LossScale(**scale) if (scale := head["loss_scale"]) else None
        return Checkpoint(step, head["settings"], EngineState(weights, states, loss_scale), rng, head["metrics"])

    def newest(self, tell: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint that is intact, or None if there is none at all.

        Args:
            tell: Gets a line for each damaged one that is passed over.

        Raises:
            CheckpointError: All are damaged.
        """
        damage = []
        for step in reversed(self.steps()):
            try:
                return self.load(step)
            except CheckpointError as error:
                damage.append(f"{error.what}: {error.got}")
                tell(f"WARNING {damage[-1]}; looking for the one before")
        if damage:
            raise CheckpointError(
                f"no checkpoint in {self.url} can be read",
                got="; ".join(damage),
                hint="restore one of them, or delete the folder to train the stage from its start",
            )
        return None

    def _path(self, step: int, suffix: str) -> str:
        return f"{self._folder}/step-{step:08d}.{suffix}"

    def _read(self, file: str) -> bytes:
        with self._storage.open(file) as source:
            return bytes(source.read())

    def _head(self, step: int) -> dict[str, Any]:
        file = self._path(step, "json")
        try:
            head: dict[str, Any] = json.loads(self._read(file))
            version = head["format_version"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise CheckpointError(f"the checkpoint of step {step} in {self.url} is damaged", got=error) from error
        if version != FORMAT_VERSION:
            raise CheckpointError(f"{file} has another format", got=version, expected=FORMAT_VERSION)
        return head

    def _tensors(self, step: int, part: str, checksums: Mapping[str, str]) -> dict[str, Tensor]:
        what = f"the checkpoint of step {step} in {self.url} is damaged"
        file = self._path(step, f"{part}.safetensors")
        try:
            data = self._read(file)
            if hashlib.sha256(data).hexdigest() != checksums[part]:
                raise CheckpointError(what, got=f"{file}: {len(data)} bytes with another checksum")
            return load(data)
        except (OSError, ValueError, LookupError, SafetensorError) as error:
            raise CheckpointError(what, got=f"{file}: {error}") from error

    def _drop_all_but(self, kept: set[int]) -> None:
        """Delete the other checkpoints, and what killed writers left: files without JSON, and unpublished ones."""
        found = self._storage.modified_at(self._folder)
        dropped = [name for name in found if name.startswith(".") or _step_of(name) not in kept]
        # JSON first: what is half deleted is no checkpoint any more.
        for name in sorted(dropped, key=lambda name: not name.endswith(".json")):
            self._storage.delete(f"{self._folder}/{name}")


def _step_of(name: str) -> int:
    match = _STEP.match(name)
    return int(match[1]) if match else -1


def require_same(saved: Mapping[str, Any], current: Mapping[str, Any], where: str) -> None:
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
