"""DeepSpeed ZeRO 0 to 3 behind the engine protocol."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from clara_dist.config.training import EngineConfig, OptimizerConfig
from clara_dist.errors import TrainingError
from clara_dist.training.batches import Batch, Totals
from clara_dist.training.collectives import Group
from clara_dist.training.engine import EngineState, Trainee, role_norms
from clara_dist.training.optimizer import build_optimizers
from clara_dist.training.steps import StepOutput

_STATES = ("exp_avg", "exp_avg_sq")


class DeepSpeedEngine:
    """One ``engine(batch)`` call holds all passes of a step; the optimiser is torch's AdamW, so nothing is compiled.

    State is read and written parameter by parameter through DeepSpeed's ``safe_*`` functions (directly at ZeRO 0), so a
    checkpoint can be loaded at another ZeRO stage or number of workers.
    """

    def __init__(
        self, trainee: Trainee, config: EngineConfig, optimizer: OptimizerConfig, accumulation: int, group: Group
    ) -> None:
        _require_supported(config, optimizer, group.device)
        deepspeed = import_deepspeed(group.device)
        self._trainee = trainee
        self._zero_stage = config.zero_stage
        self._peak_lr = optimizer.lr
        # Losses are shares of the global mean, to be summed; DeepSpeed takes the mean over workers and accumulation.
        self._loss_scale = group.world_size * accumulation
        (adamw,) = build_optimizers(trainee.parameters, optimizer)
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=trainee.step,
            optimizer=adamw,
            config=deepspeed_config(config, optimizer, accumulation),
            dist_init_required=False,
        )
        self._pending: EngineState | None = None

    def accumulate(self, batch: Batch, totals: Totals, *, last: bool) -> StepOutput:
        if self._pending is not None:
            self._load_pending(batch, totals)
        return self._forward_backward(batch, totals, 1.0, last=last)

    def _forward_backward(self, batch: Batch, totals: Totals, weight: float, *, last: bool) -> StepOutput:
        output: StepOutput = self._engine(batch, totals)
        self._engine.backward(output.loss * (self._loss_scale * weight))
        if not last:
            self._engine.step()  # counts the micro-batch; nothing is updated before the last one
        return output

    def gradient_norms(self) -> dict[str, float]:
        from deepspeed.utils import safe_get_full_grad

        if self._zero_stage == 0:
            return role_norms(self._trainee, {name: p.grad for name, p in self._trainee.parameters.items()})
        gradients = {name: safe_get_full_grad(p) for name, p in self._trainee.parameters.items()}
        scale = float(getattr(self._optimizer, "loss_scale", 1.0))
        return {role: norm / scale for role, norm in role_norms(self._trainee, gradients).items()}

    def update(self, lr_factor: float) -> float:
        for param_group in self._optimizer.param_groups:
            param_group["lr"] = self._peak_lr * lr_factor
        if self._zero_stage > 0:
            self._engine.step()
            return float(self._engine.get_global_grad_norm())
        # At ZeRO 0 DeepSpeed clips too, but does not tell the norm.
        gradients = [p.grad for p in self._trainee.parameters.values() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        self._engine.step()
        return norm

    def weights(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param

        parameters = self._trainee.parameters
        if self._zero_stage == 0:
            return {name: _cpu(p) for name, p in parameters.items()}
        return {name: _cpu(safe_get_full_fp32_param(p)) for name, p in parameters.items()}

    def state(self) -> EngineState:
        from deepspeed.utils import safe_get_full_optimizer_state

        parameters = self._trainee.parameters
        if self._zero_stage == 0:
            states = {name: {k: _cpu(v) for k, v in self._optimizer.state[p].items()} for name, p in parameters.items()}
            return EngineState(self.weights(), states)
        step = self._step_counters()[0]
        return EngineState(
            self.weights(),
            {
                name: {key: _cpu(safe_get_full_optimizer_state(p, key)) for key in _STATES} | {"step": _cpu(step)}
                for name, p in parameters.items()
            },
        )

    def load(self, state: EngineState) -> None:
        if self._zero_stage > 0:
            # ZeRO has no optimiser state to overwrite before its first step.
            self._pending = state
            return
        for name, parameter in self._trainee.parameters.items():
            self._optimizer.state[parameter] = {
                key: value.clone() if key == "step" else value.to(parameter.device, copy=True)
                for key, value in state.optimizer[name].items()
            }

    def _load_pending(self, batch: Batch, totals: Totals) -> None:
        """Make ZeRO create its optimiser state by a step that changes nothing, then overwrite it."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        state, self._pending = self._pending, None
        assert state is not None, "called only when a state is pending"
        device = self._engine.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            n_micro_batches = self._engine.gradient_accumulation_steps()
            for i in range(n_micro_batches):
                self._forward_backward(batch, totals, 0.0, last=i == n_micro_batches - 1)
            self.update(0.0)
        for name, parameter in self._trainee.parameters.items():
            for key in _STATES:
                safe_set_full_optimizer_state(parameter, state.optimizer[name][key].to(device), key)
            # The module's (possibly 16-bit) weights were loaded before; this restores the bits below them.
            safe_set_full_fp32_param(parameter, state.weights[name].to(device))
        step = next(iter(state.optimizer.values()))["step"]
        for counter in self._step_counters():
            counter.copy_(step)

    def _step_counters(self) -> list[Tensor]:
        return [state["step"] for state in self._optimizer.optimizer.state.values() if "step" in state]


def deepspeed_config(config: EngineConfig, optimizer: OptimizerConfig, accumulation: int) -> dict[str, Any]:
    """The DeepSpeed configuration: made from ours, with ``deepspeed_json`` merged over it."""
    made: dict[str, Any] = {
        # Batches come ready made; DeepSpeed only needs this number to be consistent with itself.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": optimizer.clip_norm,
        "zero_optimization": {"stage": config.zero_stage},
        "bf16": {"enabled": config.dtype == "bfloat16"},
        "fp16": {"enabled": config.dtype == "float16"},
    }
    return _merged(made, config.deepspeed_json)


def import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, quiet, initialised, and without anything that would be compiled on first use.

    The settings must be made before its first use: without a GPU its own search for an accelerator can find a CUDA
    toolkit without a device, and its shared-memory collectives would be built by a C++ compiler for a minute.
    """
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")  # launchers set it; a process on its own has no launcher
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    __compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    backend = "gloo" if device.type == "cpu" else "nccl"
    if not dist.is_initialized():
        # A process on its own. The group stays: DeepSpeed keeps it for the life of the process.
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False, dist_init_required=False)
    return deepspeed


def _require_supported(config: EngineConfig, optimizer: OptimizerConfig, device: torch.device) -> None:
    if optimizer.name != "adamw":
        raise TrainingError(
            "the DeepSpeed engine runs AdamW only", got=optimizer.name, hint="set engine.kind = torch for this stage"
        )
    if config.dtype == "float16" and device.type == "cpu":
        raise TrainingError("float16 trains on GPUs only", hint="use bfloat16 or float32")
    if config.zero_stage == 0 and config.dtype != "float32":
        # DeepSpeed hides the fp32 weights of this combination from every public function, so from checkpoints too.
        raise TrainingError(
            "ZeRO 0 runs in float32 only", got=config.dtype, hint="use zero_stage 1, which with one worker is the same"
        )


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if nested else value
    return merged


def _cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)
