"""Import of the checkpoints published with the paper.

Source: the published layout (``config.json``, ``adapters.pth``, ``decoder_first_last_layers.pth``). No code of theirs
is run; ``torch.load`` reads tensors only.
"""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clara_dist.config.model import ClaraConfig, Dtype, LoraSettings, Role
from clara_dist.errors import CheckpointError
from clara_dist.model import base as base_models
from clara_dist.model import hub
from clara_dist.model.clara import ClaraModel
from clara_dist.model.files import load_role
from clara_dist.model.tokens import ClaraTokenizer

ROLE_OF_ADAPTER: dict[str, Role] = {
    "encoder_adapter": "compressor",
    "query_reasoner_adapter": "query_reasoner",
    "decoder_adapter": "generator",
}
_LORA_KEY = re.compile(r"model\.layers\.\d+\.(?:self_attn|mlp)\.(\w+)\.lora_[AB](?:\.\w+_adapter)?\.weight")


def import_apple(
    path: str | Path, base_model: str, *, dtype: Dtype = "float32", device: str | torch.device = "cpu"
) -> ClaraModel:
    """Read a published checkpoint.

    Args:
        path: Directory with the three files (a ``compression-16`` like sub-folder).
        base_model: The base LLM; the recorded name is often a path on the authors' machine, so it is not used.
        dtype: Of the base.
        device: Where the model goes.

    Raises:
        CheckpointError: A file is missing or holds anything but tensors, an adapter is unknown, or the checkpoint's
            base embeddings are not those of ``base_model``.
    """
    path = Path(path)
    settings = _read_settings(path / "config.json")
    adapters = _load(path / "adapters.pth")
    matrices = _load(path / "decoder_first_last_layers.pth")
    unknown = set(adapters) - set(ROLE_OF_ADAPTER)
    if unknown:
        raise CheckpointError(f"unknown adapters in {path}", got=sorted(unknown), expected=sorted(ROLE_OF_ADAPTER))
    found = tuple(role for name, role in ROLE_OF_ADAPTER.items() if name in adapters)
    config = ClaraConfig(
        base_model=base_model,
        base_revision=hub.commit_of(base_model),
        n_memory_tokens=settings["doc_max_length"] // settings["compr_rate"],
        doc_max_tokens=settings["doc_max_length"],
        distinct_memory_tokens=settings["different_mem_tokens"],
        separator=settings["sep"],
        lora=LoraSettings(r=settings["lora_r"], target_modules=_target_modules(adapters)),
        # The first two stages have no reasoner; it starts as the compressor.
        roles=("compressor", "query_reasoner", "generator"),
        stage="joint" if "query_reasoner" in found else "instruct",
    )
    base = base_models.load_base(base_model, revision=config.base_revision, dtype=dtype, device=device)
    tokenizer = ClaraTokenizer(
        base_models.load_tokenizer(base_model, revision=config.base_revision), config, base_models.stop_ids(base)
    )
    embeddings, lm_head = base.get_input_embeddings().weight, base.get_output_embeddings().weight
    rows = _added_rows(matrices, "model.embed_tokens.weight", embeddings, tokenizer)
    head = _added_rows(matrices, "lm_head.weight", lm_head, tokenizer)
    clara = ClaraModel(config, base, tokenizer, rows[:-3], rows[-3:], head)
    for adapter, role in ROLE_OF_ADAPTER.items():
        if adapter in adapters:
            load_role(clara, role, {_peft_key(key, adapter): t.float() for key, t in adapters[adapter].items()})
    if "query_reasoner" not in found:
        clara.copy_role("compressor", "query_reasoner")
    return clara.to(device)


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}", got=error) from error
    needed = ("doc_max_length", "compr_rate", "lora_r", "sep", "different_mem_tokens")
    missing = [name for name in needed if name not in settings]
    if missing:
        raise CheckpointError(f"{path} lacks settings", got=f"no {missing}")
    return settings


def _load(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"cannot read {path} as tensors", got=str(error).splitlines()[0]) from error


def _peft_key(key: str, adapter: str) -> str:
    return "base_model.model." + key.replace(f".{adapter}.", ".")


def _target_modules(adapters: dict[str, dict[str, Tensor]]) -> tuple[str, ...]:
    keys = [key for state in adapters.values() for key in state]
    matches = [_LORA_KEY.fullmatch(key) for key in keys]
    strange = [key for key, match in zip(keys, matches, strict=True) if match is None]
    if strange:
        raise CheckpointError("unexpected adapter keys", got=strange[:3])
    return tuple(sorted({match[1] for match in matches if match is not None}))


def _added_rows(matrices: dict[str, Tensor], name: str, base: Tensor, tokenizer: ClaraTokenizer) -> Tensor:
    """The rows behind the base's vocabulary; the rest must be the base's own."""
    if name not in matrices:
        raise CheckpointError("the checkpoint lacks an embedding matrix", got=sorted(matrices), expected=name)
    matrix = matrices[name]
    first, n_added = tokenizer.first_memory_id, tokenizer.n_added_tokens
    if matrix.shape != (first + n_added, base.shape[1]):
        raise CheckpointError(
            f"the checkpoint's {name} does not fit the base model",
            got=tuple(matrix.shape),
            expected=(first + n_added, base.shape[1]),
            hint="check the base model, or different_mem_tokens in the checkpoint's config.json",
        )
    if not torch.equal(matrix[:first].to(base.dtype), base[:first].cpu()):
        raise CheckpointError(
            f"the checkpoint's {name} of known tokens is not the base model's",
            hint="pass the base model that the checkpoint was trained on",
        )
    return matrix[first:].float().clone()
