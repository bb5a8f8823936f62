"""What a model weighs, and what a training step keeps of its forward passes, without loading any weight.

The model is built on torch's meta device, which has shapes and no memory, and a forward pass is run there: whatever the
architecture, what autograd would keep for the backward pass is counted instead of estimated. A 7B model takes seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from clara_dist.config.model import ClaraConfig, Dtype, Role
from clara_dist.errors import ModelError
from clara_dist.model.base import DTYPES
from clara_dist.model.roles import RoleSwitch, add_roles

_FRAME_TOKENS = 3  # <AE>, <ENC>, <SEP>


@dataclass(frozen=True)
class ModelSizes:
    """Numbers of weights.

    Attributes:
        base: The base LLM, embeddings and LM head included.
        roles: Of each role's LoRA.
        memory_embeddings: Rows of the memory tokens, the only ones that can be trained.
        hidden_size: D.
        vocab_size: V, rows of the LM head.
        n_layers: Decoder layers.
    """

    base: int
    roles: dict[str, int]
    memory_embeddings: int
    hidden_size: int
    vocab_size: int
    n_layers: int


class MetaModel:
    """A model's shapes.

    Args:
        config: The model.
        dtype: What it computes in; LoRA weights have that type too, as DeepSpeed makes them.
        base_config: Of the base LLM; None reads that of ``config.base_model``, a directory or hub id.

    Raises:
        ModelError: The base's configuration cannot be read, or its LoRA targets match nothing.
    """

    def __init__(self, config: ClaraConfig, dtype: Dtype, base_config: PretrainedConfig | None = None) -> None:
        if base_config is None:
            base_config = read_base_config(config)
        with torch.device("meta"):
            base = AutoModelForCausalLM.from_config(base_config, dtype=DTYPES[dtype])
            self._peft = add_roles(base, config)
        self._peft.to(DTYPES[dtype])
        self._base = base
        self._switch = RoleSwitch(self._peft)
        self._dtype = DTYPES[dtype]
        embeddings = base.get_input_embeddings().weight
        n_rows = config.n_memory_tokens if config.distinct_memory_tokens else 1
        counts = {name: parameter.numel() for name, parameter in self._peft.named_parameters()}
        self.sizes = ModelSizes(
            base=sum(n for name, n in counts.items() if ".lora_" not in name),
            roles={role: sum(n for name, n in counts.items() if f".{role}." in name) for role in config.roles},
            memory_embeddings=n_rows * embeddings.shape[1],
            hidden_size=embeddings.shape[1],
            vocab_size=base.get_output_embeddings().weight.shape[0],
            n_layers=getattr(base_config.get_text_config(), "num_hidden_layers", 1),
        )

    def activation_bytes(self, role: Role, n_texts: int, n_tokens: int, *, checkpointing: bool = False) -> int:
        """Bytes that the body keeps for the backward pass of ``role`` over texts that are padded to one length.

        With checkpointing: the input of every layer, and one layer whole, at the moment that it is recomputed.
        """
        for name, parameter in self._peft.named_parameters():
            parameter.requires_grad_(f".{role}." in name)
        kept = self._kept_bytes(role, n_texts, n_tokens)
        if not checkpointing:
            return kept
        layers = self.sizes.n_layers
        return layers * n_texts * n_tokens * self.sizes.hidden_size * self._dtype.itemsize + kept // layers

    def _kept_bytes(self, role: Role, n_texts: int, n_tokens: int) -> int:
        weights = {p.untyped_storage()._cdata for p in [*self._peft.parameters(), *self._peft.buffers()]}
        kept: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            # By storage: views of one tensor are kept once. The tensor is held, so that no address is used twice.
            if (storage := tensor.untyped_storage()._cdata) not in weights:
                kept[storage] = tensor
            return tensor

        d = self.sizes.hidden_size
        with torch.device("meta"):
            # The input's gradient runs through memory slots and memory tokens, so every layer is part of the graph.
            embeds_BLD = torch.empty(n_texts, n_tokens, d, dtype=self._dtype, requires_grad=True)
            with self._switch.use(role), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), _AsOnDevice():
                self._base.base_model(inputs_embeds=embeds_BLD, use_cache=False)
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def read_base_config(config: ClaraConfig) -> PretrainedConfig:
    """The base LLM's ``config.json``.

    Raises:
        ModelError: There is none.
    """
    try:
        return AutoConfig.from_pretrained(config.base_model, revision=config.base_revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot read the config.json of the base model {config.base_model}",
            got=error,
            hint="name a local directory that has it, or allow access to the Hub",
        ) from error


class _AsOnDevice(TorchFunctionMode):
    """Where the meta device is another than a real one.

    SDPA would keep its score matrix there, as no kernel on a GPU does. And transformers looks whether positions begin
    anew in a row, to see if it needs a mask: there are no values to look at, and they do not.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__bool__:
            return True
        if func is nn.functional.scaled_dot_product_attention:
            return _KeepsInputsAndOutput.apply(*args[:3])
        return func(*args, **(kwargs or {}))


class _KeepsInputsAndOutput(torch.autograd.Function):
    """Attention by what it keeps: queries, keys, values, output, and one number a row."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = (
            query.transpose(1, 2).new_empty(query.transpose(1, 2).shape).transpose(1, 2)
        )  # as the kernels lay it out
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise AssertionError("shapes are counted forward only")
