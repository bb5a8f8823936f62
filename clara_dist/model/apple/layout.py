"""Names and settings of the published layout."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clara_dist.config.model import Role
from clara_dist.errors import CheckpointError

CONFIG_FILE = "config.json"
ADAPTERS_FILE = "adapters.pth"
MATRICES_FILE = "decoder_first_last_layers.pth"
EMBEDDINGS = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
ROLE_OF_ADAPTER: dict[str, Role] = {
    "encoder_adapter": "compressor",
    "query_reasoner_adapter": "query_reasoner",
    "decoder_adapter": "generator",
}
ADAPTER_OF_ROLE = {role: adapter for adapter, role in ROLE_OF_ADAPTER.items()}
# The published stages, by the name of what each leaves behind here.
STAGE_NAMES = {"compression": "stage1", "instruct": "stage1_2", "joint": "stage2"}
# Their model puts LoRA on these, and on nothing else.
TARGET_MODULES = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
# In a published config.json: the LM-head rows of the added tokens are stand-ins (see exporting.py), not weights.
STAND_IN_HEAD = "clara_dist_stand_in_head"

_KEY = re.compile(r"(?P<layer>.+\.(?P<module>\w+))\.(?P<half>lora_[AB])(?:\.\w+)?\.weight")


@dataclass(frozen=True)
class AdapterKey:
    """Name of a LoRA tensor, taken apart: the layer, the layer's own name, ``lora_A`` or ``lora_B``."""

    layer: str
    module: str
    half: str

    @classmethod
    def parse(cls, key: str) -> AdapterKey | None:
        """Of a published name; None if it is no LoRA weight."""
        match = _KEY.fullmatch(key)
        return None if match is None else cls(match["layer"], match["module"], match["half"])

    @property
    def published(self) -> str:
        return f"{self.layer}.{self.half}.weight"

    @property
    def peft(self) -> str:
        """The name in PEFT's own files."""
        return f"base_model.model.{self.published}"


@dataclass(frozen=True)
class Settings:
    """The settings of a published ``config.json`` that mean something; the others are left unread, as documented.

    Attributes:
        decoder_model_name: The base LLM; often a path on the authors' machine.
        generation_top_k: Documents that an answer is generated from.
        training_stage: The stage's published name.
        stand_in_head: See `STAND_IN_HEAD`.
    """

    doc_max_length: int
    compr_rate: int
    lora_r: int
    sep: bool
    different_mem_tokens: bool
    decoder_model_name: str | None = None
    generation_top_k: int = 5
    training_stage: str | None = None
    lora: bool = True
    stand_in_head: bool = False

    @classmethod
    def read(cls, path: Path) -> Settings:
        """Read a ``config.json``.

        Raises:
            CheckpointError: It is unreadable, lacks a setting, or a setting is of another type.
        """
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read {path}", got=error) from error
        if not isinstance(tree, dict):
            raise CheckpointError(f"{path} holds no settings", got=type(tree).__name__, expected="an object")
        needed = ("doc_max_length", "compr_rate", "lora_r", "sep", "different_mem_tokens")
        missing = [name for name in needed if name not in tree]
        if missing:
            raise CheckpointError(f"{path} lacks settings", got=f"no {missing}")
        kinds: dict[str, type] = {"doc_max_length": int, "compr_rate": int, "lora_r": int, "generation_top_k": int}
        kinds |= {"sep": bool, "different_mem_tokens": bool, "lora": bool, "stand_in_head": bool}
        kinds |= {"decoder_model_name": str, "training_stage": str}
        found = {name: tree.get(STAND_IN_HEAD if name == "stand_in_head" else name) for name in kinds}
        values: dict[str, Any] = {name: value for name, value in found.items() if value is not None}
        for name, value in values.items():
            if type(value) is not kinds[name] or (type(value) is int and value < 1):
                raise CheckpointError(f"{path}: {name} makes no sense", got=repr(value), expected=kinds[name].__name__)
        settings = cls(**values)
        if not settings.lora:
            raise CheckpointError(f"{path} is of a model without LoRA", got="lora: false", expected="lora: true")
        if settings.doc_max_length < settings.compr_rate:
            raise CheckpointError(
                f"{path} leaves no memory token",
                got=f"doc_max_length {settings.doc_max_length}, compr_rate {settings.compr_rate}",
            )
        return settings
