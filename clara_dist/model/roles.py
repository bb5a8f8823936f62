"""Three LoRA roles on one base LLM.

PEFT's ``set_adapter`` flips ``requires_grad``, which takes a role's parameters out of a step that runs two roles; and
gradient checkpointing recomputes a layer under whatever role is active at backward. So roles are switched here by
writing the active adapter of every LoRA layer and nothing else, and checkpoints restore the role of their forward pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from clara_dist.config.model import ClaraConfig, Role
from clara_dist.errors import ModelError


class RoleSwitch:
    """Chooses which role's LoRA runs. One per model; not thread-safe, like the model itself."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        if not self._layers:
            raise ModelError("the base model has no LoRA layer", hint="check lora.target_modules")
        experts = sorted(
            {type(layer.get_base_layer()).__name__ for layer in self._layers if isinstance(layer, ParamWrapper)}
        )
        if experts:
            raise ModelError(
                "experts of a mixture cannot carry roles: their LoRA could not be merged for compression and serving",
                got=f"{', '.join(experts)} among the targets",
                hint="name other layers, for example lora.target_modules=[q_proj,k_proj,v_proj,o_proj]",
            )
        if not hasattr(self._layers[0], "_active_adapter"):
            raise ModelError("this PEFT keeps its active adapter elsewhere", hint="install the pinned version of peft")
        self._roles = set(self._layers[0].lora_A)
        self._active: Role | None = None
        # The role whose weights are part of the base matrices: it runs with no LoRA at all.
        self._in_base: Role | None = None

    @property
    def active(self) -> Role | None:
        return self._active

    @property
    def merged(self) -> Role | None:
        """The role that is part of the base weights."""
        return self._in_base

    @contextmanager
    def use(self, role: Role | None) -> Iterator[None]:
        """Run the body's forward passes as ``role`` (None: leave the choice as it is).

        Raises:
            ModelError: The model does not have the role, or lost it when another one was merged into the base.
        """
        previous = self._active
        self._activate(role)
        try:
            yield
        finally:
            self._activate(previous)

    def _activate(self, role: Role | None) -> None:
        if role is None or role == self._active:
            self._active = role
            return
        if role != self._in_base:
            self._require(role)
        for layer in self._layers:
            layer._active_adapter = [role]
            layer._disable_adapters = role == self._in_base
        self._active = role

    def checkpoint_function(self) -> Callable[..., Any]:
        """A gradient-checkpointing function for transformers that recomputes under the role of the forward pass."""

        def checkpointed(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            role = self._active

            def run(*inner: Any, **inner_kwargs: Any) -> Any:
                with self.use(role):
                    return function(*inner, **inner_kwargs)

            kwargs.pop("use_reentrant", None)
            return checkpoint(run, *args, use_reentrant=False, **kwargs)

        return checkpointed

    @torch.no_grad()
    def merge(self, role: Role) -> None:
        """Fold ``role`` into the base weights and drop every LoRA: no adapter cost, and only this role can run."""
        self._require_unmerged(role)
        for layer in self._layers:
            layer.get_base_layer().weight += layer.get_delta_weight(role)
            _delete_adapters(layer, keep=None)
        self._in_base, self._roles = role, set()

    @torch.no_grad()
    def fuse(self, merged: Role, kept: Role) -> None:
        """Fold ``merged`` into the base and rewrite ``kept`` relative to it, so that one copy of the base runs both.

        W + dW_kept = (W + dW_merged) + (dW_kept - dW_merged), and the difference of two rank-r updates is a rank-2r
        update: A' = [A_kept; A_merged], B' = [B_kept, -B_merged]. The role that decodes token by token pays no adapter;
        the other, one short pass per question, pays rank 2r. Roles other than the two are dropped.
        """
        self._require_unmerged(merged)
        self._require(kept)
        for layer in self._layers:
            layer.get_base_layer().weight += layer.get_delta_weight(merged)
            down = torch.cat([layer.lora_A[kept].weight, layer.lora_A[merged].weight])
            scale = layer.scaling[merged] / layer.scaling[kept]
            up = torch.cat([layer.lora_B[kept].weight, -scale * layer.lora_B[merged].weight], dim=1)
            for module, weight in ((layer.lora_A[kept], down), (layer.lora_B[kept], up)):
                module.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
                module.out_features, module.in_features = weight.shape
            _delete_adapters(layer, keep=kept)
        self._in_base, self._roles = merged, {kept}

    def _require_unmerged(self, role: Role) -> None:
        if self._in_base is not None:
            raise ModelError(f"{self._in_base} is part of the base weights already")
        if not all(layer.get_base_layer().weight.is_floating_point() for layer in self._layers):
            raise ModelError(
                f"{role} cannot be merged into quantised weights", hint="leave the roles unmerged, as `ClaraModel` does"
            )
        self._require(role)
        self._active = None

    def _require(self, role: Role) -> None:
        if role in self._roles:
            return
        if self._in_base is None:
            raise ModelError(f"this model has no {role}", got=f"roles {sorted(self._roles)}")
        raise ModelError(
            f"this model has no {role} any more: {self._in_base} was merged into the base weights",
            got=f"roles {sorted(self._roles | {self._in_base})}",
            hint="load the model again",
        )


def _delete_adapters(layer: LoraLayer, keep: Role | None) -> None:
    layer._active_adapter = []  # PEFT warns when it deletes the active one
    for name in list(layer.lora_A):
        if name != keep:
            layer.delete_adapter(name)


def add_roles(base: PreTrainedModel, config: ClaraConfig) -> PeftModel:
    """Put one LoRA adapter per role on a base LLM.

    Raises:
        ModelError: A target matches no layer, or the embeddings or the LM head, or PEFT cannot adapt one that does.
    """
    lora = config.lora
    targets = lora.target_modules if lora.target_modules == "all-linear" else list(lora.target_modules)

    def settings() -> LoraConfig:
        return LoraConfig(
            r=lora.r,
            lora_alpha=lora.scale_alpha,
            lora_dropout=lora.dropout,
            target_modules=targets,
            task_type="CAUSAL_LM",
            inference_mode=True,
        )

    names = [name for name, _ in base.named_modules()]
    missing = [] if isinstance(targets, str) else [t for t in targets if not any(_ends_in(name, t) for name in names)]
    if missing:
        raise ModelError(
            "lora.target_modules that the base model does not have",
            got=", ".join(missing),
            expected="names of its layers, such as " + ", ".join(_linear_names(base)),
        )
    # Both also run where no role is active; PEFT would then run there whatever ran last.
    outer = (base.get_input_embeddings(), base.get_output_embeddings())
    outer_names = [name for name, module in base.named_modules() if any(module is other for other in outer)]
    refused = [name for name in outer_names if targets != "all-linear" and any(_ends_in(name, t) for t in targets)]
    if refused:
        raise ModelError(
            "roles cannot change the base model's embeddings or LM head",
            got=", ".join(refused),
            hint="leave them out of lora.target_modules",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers for a property by its old name
            first, *rest = config.roles
            model = PeftModel(base, settings(), adapter_name=first)
            for role in rest:
                model.add_adapter(role, settings())
    except ValueError as error:
        raise ModelError(
            "LoRA cannot be put on this base model", got=error, hint="check lora.target_modules against its layer names"
        ) from error
    return model


def _ends_in(module_name: str, target: str) -> bool:
    """Whether PEFT takes a module for a target: its name or the end of its dotted name."""
    return module_name == target or module_name.endswith(f".{target}")


def _linear_names(base: PreTrainedModel) -> list[str]:
    return sorted({name.rpartition(".")[2] for name, module in base.named_modules() if isinstance(module, nn.Linear)})
