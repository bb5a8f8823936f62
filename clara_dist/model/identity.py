"""Content hashes: what a model is, whatever its files are called."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from clara_dist.config.model import ClaraConfig, Quantization
from clara_dist.errors import ModelError

_CHUNK_BYTES = 1 << 22


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes and fp32 values, in order of name: equal weights of another dtype are the same."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().float().cpu().contiguous()
        digest.update(f"{name}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def base_identity(base: str, commit: str | None) -> str:
    """Identity of a base LLM: a Hub commit, or the hash of a local directory's configuration and weights.

    Hashing reads the weights once per process and file state, about as long as loading them takes.
    """
    path = Path(base)
    if not path.is_dir():
        if commit is None:
            raise ModelError("the base model has no commit to identify it", got=base)
        return f"hub:{base}@{commit}"
    files = sorted([path / "config.json", *path.glob("*.safetensors")])
    if len(files) < 2:
        raise ModelError("the base model has no *.safetensors weights", got=base)
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(f"{file.name}|{_hash_file(str(file), stat.st_size, stat.st_mtime_ns)}|".encode())
    return f"sha256:{digest.hexdigest()}"


def base_fields(
    config: ClaraConfig, tokenizer: str, quantization: Quantization | None, base_rows: Mapping[str, Tensor]
) -> dict[str, str]:
    """Fingerprint fields of all that training does not change.

    Args:
        config: The model's.
        tokenizer: Content hash of what decides ids.
        quantization: Of the base.
        base_rows: First rows of the base's matrices that an imported checkpoint changed; of them, the LM head's decide
            no memory.
    """
    fields = quantization_identity(quantization) | {
        "base": base_identity(config.base_model, config.base_revision),
        "tokenizer": tokenizer,
        "document_template": config.document_template,
        "doc_max_tokens": str(config.doc_max_tokens),
        "n_memory_tokens": str(config.n_memory_tokens),
        "distinct_memory_tokens": str(config.distinct_memory_tokens),
    }
    if "embed_tokens" in base_rows:
        fields["base_embeddings"] = hash_tensors({"embed_tokens": base_rows["embed_tokens"]})
    return fields


def document_fields(
    config: ClaraConfig, compressor: Mapping[str, Tensor], rows: Mapping[str, Tensor]
) -> dict[str, str]:
    """Fingerprint fields of what training changes and documents depend on.

    Args:
        config: The model's.
        compressor: The role's weights by PEFT's names.
        rows: ``memory`` and ``frame``, the embeddings of the added tokens; others are left out.
    """
    return {
        "compressor": hash_tensors(compressor),
        "lora_scale": str(config.lora.scale_alpha / config.lora.r),
        "memory_embeddings": hash_tensors({name: rows[name] for name in ("memory", "frame")}),
    }


def quantization_identity(quantization: Quantization | None) -> dict[str, str]:
    """Fingerprint fields of a quantised base, which gives other memories; a whole base has none, as it always had."""
    return {} if quantization is None else {"quantization": quantization}


@lru_cache(maxsize=256)
def _hash_file(path: str, size_bytes: int, mtime_ns: int) -> str:
    # Size and time are the cache's key: a file that changed is read again.
    del size_bytes, mtime_ns
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
