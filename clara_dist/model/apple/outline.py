"""What a conversion must know of a base LLM, without loading its layers."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from clara_dist.config.model import ClaraConfig
from clara_dist.errors import CheckpointError, ModelError
from clara_dist.model import base as base_models
from clara_dist.model.apple.layout import EMBEDDINGS, HEAD
from clara_dist.model.roles import add_roles
from clara_dist.model.tokens import ClaraTokenizer

_CHUNK_ROWS = 4096
_BASE_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]


@dataclass(frozen=True)
class BaseOutline:
    """A base LLM as shapes and files.

    Attributes:
        path: Local directory of its files (of a hub base: in the cache).
        model: On the meta device: names and shapes, no weights.
        tokenizer: Its tokenizer.
    """

    path: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast

    @classmethod
    def of(cls, base: str, revision: str | None) -> BaseOutline:
        """Outline a base LLM.

        Raises:
            ModelError: It cannot be read.
        """
        try:
            path = (
                base if os.path.isdir(base) else snapshot_download(base, revision=revision, allow_patterns=_BASE_FILES)
            )
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ModelError(f"cannot read the base model {base}", got=error, hint="check --base") from error
        if hasattr(model.get_input_embeddings(), "scalar_embed_scale"):
            raise ModelError(
                "the published layout has no place for embeddings that are scaled", got=type(model).__name__
            )
        return cls(Path(path), model, base_models.load_tokenizer(path))

    def clara_tokenizer(self, config: ClaraConfig) -> ClaraTokenizer:
        """The tokenizer with the added ids of a model."""
        return ClaraTokenizer(self.tokenizer, config)

    def lora(self, config: ClaraConfig) -> tuple[LoraConfig, dict[str, tuple[int, ...]]]:
        """PEFT's settings of a role, and the names (as in its files) and shapes of the role's tensors.

        Raises:
            ModelError: A target of ``config.lora`` matches nothing.
        """
        one_role = config.model_copy(update={"roles": ("compressor",)})
        with torch.device("meta"):
            peft: PeftModel = add_roles(copy.deepcopy(self.model), one_role)  # it puts its layers into the model
        state = get_peft_model_state_dict(peft, adapter_name="compressor", save_embedding_layers=False)
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        return peft.peft_config["compressor"], shapes

    def matrix_shape(self, name: str) -> tuple[int, int]:
        """Rows and columns of the input embeddings or the LM head."""
        shape = cast(Tensor, self._module(name).weight).shape
        return shape[0], shape[1]

    def chunks(self, name: str, n_rows: int) -> Iterator[tuple[int, Tensor]]:
        """The first rows of the input embeddings or the LM head, read from the files chunk by chunk, with their start.

        Raises:
            CheckpointError: The base's files do not have the matrix, or not so many rows of it.
        """
        n_there, _ = self.matrix_shape(name)
        if n_rows > n_there:
            raise CheckpointError(
                "the base model has fewer embedding rows than its tokenizer has tokens",
                got=f"{n_there} rows in {name}",
                expected=f"{n_rows} at least",
                hint="use the tokenizer that belongs to the base model",
            )
        key = self._keys[name]
        file = self._file_of(key)
        try:
            with safe_open(file, "pt") as tensors:
                matrix = tensors.get_slice(key)
                for start in range(0, n_rows, _CHUNK_ROWS):
                    yield start, matrix[start : min(start + _CHUNK_ROWS, n_rows)]
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot read {key} of the base model", got=error) from error

    def _module(self, name: str) -> nn.Module:
        return self.model.get_input_embeddings() if name == EMBEDDINGS else self.model.get_output_embeddings()

    @cached_property
    def _keys(self) -> dict[str, str]:
        """The two matrices' names in the base's files."""
        names = {id(module): name for name, module in self.model.named_modules()}
        keys = {name: f"{names[id(self._module(name))]}.weight" for name in (EMBEDDINGS, HEAD)}
        return keys | ({HEAD: keys[EMBEDDINGS]} if self.model.config.tie_word_embeddings else {})

    def _file_of(self, key: str) -> Path:
        index = self.path / "model.safetensors.index.json"
        if index.exists():
            file = json.loads(index.read_text(encoding="utf-8"))["weight_map"].get(key)
            if file is None:
                raise CheckpointError("the base model's files lack a matrix", got=str(index), expected=key)
            return self.path / file
        return self.path / "model.safetensors"
