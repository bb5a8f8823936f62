"""DeepSpeed ZeRO 0 to 3, with and without offloading, behind the engine protocol."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from clara_dist.config.deepspeed import OURS
from clara_dist.config.training import EngineConfig, OptimizerConfig
from clara_dist.errors import TrainingError
from clara_dist.training.batches import Batch, Totals
from clara_dist.training.collectives import Group
from clara_dist.training.engine import EngineState, LossScale, Trainee, half_precision, role_norms
from clara_dist.training.optimizer import build_optimizers
from clara_dist.training.steps import StepOutput

_STATES = ("exp_avg", "exp_avg_sq")


class DeepSpeedEngine:
    """One ``engine(batch)`` call holds all passes of a step; the optimiser is AdamW.

    At ZeRO 0 a 16-bit type is torch's autocast over float32 trained weights, as in the torch engine: DeepSpeed's own
    way would hide their float32 copies. From ZeRO 1 on DeepSpeed casts the whole module, and keeps those copies.

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
        # Losses are shares of the global mean, to be summed; DeepSpeed takes the mean over workers and accumulation.
        self._loss_factor = group.world_size * accumulation
        masters = {name: p.detach().float().clone() for name, p in trainee.parameters.items()}
        step = trainee.step
        if config.zero_stage == 0:
            step = _Autocast(step, half_precision(group.device, config.dtype))
            for parameter in trainee.parameters.values():
                parameter.data = parameter.data.float()
        (adamw,) = build_optimizers(
            trainee.parameters, optimizer, role_of=trainee.role_of, adamw=_adamw(config, group.device)
        )
        self._peak_lrs = [param_group["lr"] for param_group in adamw.param_groups]
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=step,
            optimizer=adamw,
            config=_checked(deepspeed_config(config, optimizer, accumulation, group.device)),
            dist_init_required=False,
        )
        if config.zero_stage > 0 and config.dtype != "float32":
            self._restore_masters(masters)
        self._pending: EngineState | None = None

    def accumulate(self, batch: Batch, totals: Totals, *, last: bool) -> StepOutput:
        if self._pending is not None:
            self._load_pending(batch, totals)
        return self._forward_backward(batch, totals, 1.0, last=last)

    def _forward_backward(self, batch: Batch, totals: Totals, weight: float, *, last: bool) -> StepOutput:
        output: StepOutput = self._engine(batch, totals)
        self._engine.backward(output.loss * (self._loss_factor * weight))
        if not last:
            self._engine.step()  # counts the micro-batch; nothing is updated before the last one
        return output

    def evaluate(self, batch: Batch, totals: Totals) -> StepOutput:
        self._engine.eval()
        try:
            with torch.no_grad():
                output: StepOutput = self._engine(batch, totals)
        finally:
            self._engine.train()
        return output

    def gradient_norms(self) -> dict[str, float]:
        from deepspeed.utils import safe_get_full_grad

        if self._zero_stage == 0:
            return role_norms(self._trainee, {name: p.grad for name, p in self._trainee.parameters.items()})
        gradients = {name: safe_get_full_grad(p) for name, p in self._trainee.parameters.items()}
        scale = float(getattr(self._optimizer, "loss_scale", 1.0))
        return {role: norm / scale for role, norm in role_norms(self._trainee, gradients).items()}

    def update(self, lr_factor: float) -> float:
        for param_group, peak_lr in zip(self._optimizer.param_groups, self._peak_lrs, strict=True):
            param_group["lr"] = peak_lr * lr_factor
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
        step = torch.tensor(float(self._inner_states()[0]["step"]))
        states = {}
        for name, parameter in parameters.items():
            found = {key: safe_get_full_optimizer_state(parameter, key) for key in _STATES}
            states[name] = {key: _cpu(value) for key, value in found.items()} | {"step": step.clone()}
        return EngineState(self.weights(), states, self._loss_scale())

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
        for inner in self._inner_states():
            # A tensor in torch's AdamW, an integer in DeepSpeed's.
            inner["step"] = step.to(inner["step"], copy=True) if isinstance(inner["step"], Tensor) else int(step)
        scaler = getattr(self._optimizer, "loss_scaler", None)
        if state.loss_scale is not None and scaler is not None and scaler.dynamic:
            scaler.cur_scale = state.loss_scale.scale
            scaler.cur_iter, scaler.last_overflow_iter = state.loss_scale.good_steps, -1

    def _loss_scale(self) -> LossScale | None:
        scaler = getattr(self._optimizer, "loss_scaler", None)
        if scaler is None or not scaler.dynamic:
            return None
        return LossScale(float(scaler.cur_scale), scaler.cur_iter - scaler.last_overflow_iter - 1)

    def _inner_states(self) -> list[dict[str, Any]]:
        return [state for state in self._optimizer.optimizer.state.values() if "step" in state]

    def _restore_masters(self, masters: Mapping[str, Tensor]) -> None:
        """Give the float32 copies the bits back that DeepSpeed has cut off before it made them."""
        from deepspeed.utils import safe_set_full_fp32_param

        for name, parameter in self._trainee.parameters.items():
            safe_set_full_fp32_param(parameter, masters[name].to(self._engine.device))


class _Autocast(nn.Module):
    """A module under autocast."""

    def __init__(self, inner: nn.Module, autocast: torch.autocast) -> None:
        super().__init__()
        self.inner = inner
        self._autocast = autocast

    def forward(self, batch: Batch, totals: Totals) -> StepOutput:
        with self._autocast:
            output: StepOutput = self.inner(batch, totals)
        return output


def deepspeed_config(
    config: EngineConfig, optimizer: OptimizerConfig, accumulation: int, device: torch.device
) -> dict[str, Any]:
    """The DeepSpeed configuration: made from ours, with the rest of ``deepspeed_json`` merged over it.

    What both say has been compared when the configuration was made (`clara_dist.config.deepspeed`).
    """
    zero: dict[str, Any] = {"stage": config.zero_stage}
    offloaded = {"device": "cpu", "pin_memory": device.type != "cpu"}
    if config.offload != "none":
        zero["offload_optimizer"] = offloaded
    if config.offload == "all":
        zero["offload_param"] = offloaded
    # ZeRO 0 is under torch's autocast. Without hysteresis the scale is a function of LossScale, so of the checkpoint.
    dtype = config.dtype if config.zero_stage > 0 else "float32"
    made: dict[str, Any] = {
        # Batches come ready made; DeepSpeed only needs this number to be consistent with itself.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": optimizer.clip_norm,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # `_adamw` chooses
        "bf16": {"enabled": dtype == "bfloat16"},
        "fp16": {"enabled": dtype == "float16", "hysteresis": 1},
    }
    theirs = {key: value for key, value in config.deepspeed_json.items() if key not in OURS}
    if config.zero_stage == 0:
        theirs = {key: value for key, value in theirs.items() if key not in ("bf16", "fp16")}
    return _merged(made, theirs)


def _checked(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration, if DeepSpeed can read it."""
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError

    try:
        DeepSpeedConfig(config)
    except (DeepSpeedConfigError, ValueError, TypeError, KeyError, AssertionError) as error:
        raise TrainingError("DeepSpeed refuses its configuration", got=error, hint="see deepspeed_json") from error
    return config


def _adamw(config: EngineConfig, device: torch.device) -> Callable[..., torch.optim.Optimizer]:
    """AdamW of torch, or for offloaded state on a GPU's node DeepSpeed's vectorised one.

    DeepSpeed compiles its own on first use, for about two minutes, once per machine; that needs a compiler. The
    numbers are the same but for rounding.
    """
    if config.offload == "none" or device.type == "cpu" or shutil.which("g++") is None:
        return torch.optim.AdamW
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    from deepspeed.ops.op_builder import CPUAdamBuilder

    return DeepSpeedCPUAdam if CPUAdamBuilder().is_compatible() else torch.optim.AdamW


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
    if config.dtype == "float16" and config.zero_stage == 0:
        raise TrainingError(
            "DeepSpeed scales no loss at ZeRO 0, which float16 needs",
            hint="use zero_stage 1, which with one worker is the same, or engine.kind = torch",
        )
    if config.dtype == "float16" and device.type == "cpu":
        raise TrainingError(
            "DeepSpeed runs float16 on GPUs only", hint="use bfloat16 or float32, or engine.kind = torch"
        )


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if nested else value
    return merged


def _cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)
