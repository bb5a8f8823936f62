"""From a published checkpoint to a model directory.

The base LLM is not loaded: its configuration gives names and shapes, and of its weights only the embedding matrices are
read, some rows at a time. Of the checkpoint one adapter is in memory at a time; the rest stays mapped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from peft import LoraConfig
from torch import Tensor

from clara_dist.config.model import ClaraConfig, LoraSettings, Role
from clara_dist.errors import CheckpointError, ModelError
from clara_dist.model import files, hub
from clara_dist.model.apple.layout import (
    ADAPTERS_FILE,
    CONFIG_FILE,
    EMBEDDINGS,
    HEAD,
    MATRICES_FILE,
    ROLE_OF_ADAPTER,
    STAGE_NAMES,
    AdapterKey,
    Settings,
)
from clara_dist.model.apple.outline import BaseOutline
from clara_dist.model.apple.report import Report

REPORT_FILE = "import-report.json"
_FILES = (CONFIG_FILE, ADAPTERS_FILE, MATRICES_FILE)
_NAMED = 3


def import_apple(
    checkpoint: str | Path,
    out: str | Path,
    *,
    base: str | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
) -> Report:
    """Turn a published checkpoint into a model directory.

    Adapters and added rows become float32, as in every model directory; bfloat16 values survive that exactly.

    Args:
        checkpoint: Directory of the three files, a directory of such directories (``compression-16`` ...), or a hub id,
            ``user/name`` or ``user/name/compression-16``.
        out: Model directory to write; replaced as a whole if it exists. Its ``import-report.json`` lists every tensor.
        base: The base LLM, a directory or a hub id. None takes the recorded name, which may be a path on the authors'
            machine.
        subfolder: Which of several checkpoints.
        revision: Branch, tag or commit of a hub id.

    Raises:
        CheckpointError: A file is missing, damaged, or holds anything but tensors; a tensor is missing, unknown or of
            another shape than the base LLM and the settings say.
        ModelError: The base LLM cannot be read.
    """
    path = _locate(checkpoint, subfolder, revision)
    settings = Settings.read(path / CONFIG_FILE)
    adapters = _adapters(path / ADAPTERS_FILE)
    matrices = _matrices(path / MATRICES_FILE)
    config = _config(settings, adapters, base or settings.decoder_model_name, path)
    outline = BaseOutline.of(config.base_model, config.base_revision)
    report = Report(str(path), str(out))
    lora, shapes = outline.lora(config)
    for name, state in adapters.items():
        _require_same(f"adapter {name} of {path / ADAPTERS_FILE}", _peft_shapes(state), shapes)
    tokenizer = outline.clara_tokenizer(config)
    first, n_added = tokenizer.first_memory_id, tokenizer.n_added_tokens
    base_rows: dict[str, Tensor] = {}
    added = {
        name: _split(matrices[name], name, outline, first, n_added, base_rows, report) for name in (EMBEDDINGS, HEAD)
    }
    rows = {"memory": added[EMBEDDINGS][:-3], "frame": added[EMBEDDINGS][-3:]}
    if settings.stand_in_head:
        report.notes.append("the LM-head rows of the added tokens were stand-ins; the model has none")
    else:
        rows["head"] = added[HEAD]
    with files.replaced_directory(Path(out), files.ROWS_FILE) as staging:
        files.write_directory(
            staging, config, outline.tokenizer, _roles(config, lora, adapters, report), rows, base_rows
        )
        _note_settings(settings, config, report)
        report.write(staging / REPORT_FILE)
    return report


# --- finding and reading --------------------------------------------------------------------------------------------


def _locate(checkpoint: str | Path, subfolder: str | None, revision: str | None) -> Path:
    """The local directory of the three files."""
    if isinstance(checkpoint, Path) or Path(checkpoint).is_dir():
        if revision is not None:
            raise CheckpointError("only a checkpoint on the Hub has revisions", got=f"{checkpoint}, {revision}")
        root = Path(checkpoint)
        folders = sorted(file.parent.relative_to(root).as_posix() for file in root.glob(f"**/{ADAPTERS_FILE}"))
        return root / _choose(str(checkpoint), folders, subfolder)
    parts = checkpoint.rstrip("/").split("/")
    repo, inner = "/".join(parts[:2]), "/".join(parts[2:])
    if inner and subfolder is not None:
        raise CheckpointError("two sub-folders are named", got=f"{checkpoint}, {subfolder}", expected="one of them")
    try:
        names = HfApi().list_repo_files(repo, revision=revision)
        folders = sorted(str(Path(name).parent.as_posix()) for name in names if Path(name).name == ADAPTERS_FILE)
        folder = _choose(repo, folders, inner or subfolder)
        wanted = [file if folder == "." else f"{folder}/{file}" for file in _FILES]
        return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted)) / folder
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        raise CheckpointError(
            f"{checkpoint} is neither a directory nor a checkpoint on the Hub that can be read",
            got=error,
            hint="check the name, the network and the token (`hf auth login`)",
        ) from error


def _choose(checkpoint: str, folders: list[str], subfolder: str | None) -> str:
    if subfolder is not None and subfolder.strip("/") in folders:
        return subfolder.strip("/")
    if subfolder is None and len(folders) == 1:
        return folders[0]
    if not folders:
        raise CheckpointError(f"{checkpoint} is no published checkpoint", got=f"no {ADAPTERS_FILE} in it")
    raise CheckpointError(
        f"{checkpoint} holds several checkpoints"
        if subfolder is None
        else f"{checkpoint} has no checkpoint {subfolder}",
        got=", ".join(folders),
        hint="choose one of them with --subfolder",
    )


def _load(path: Path) -> Any:
    """Tensors of a file, mapped: only what is used is read."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch, its zip reader, the unpickler: damage shows as nearly any class
        reason = str(error).splitlines() or [type(error).__name__]
        raise CheckpointError(f"cannot read {path} as tensors", got=reason[0]) from error


def _adapters(path: Path) -> dict[str, dict[str, Tensor]]:
    """The file's adapters, in our order of roles."""
    found = _load(path)
    if not isinstance(found, dict) or not all(_is_state(state) for state in found.values()):
        raise CheckpointError(f"{path} is no file of adapters", expected="{adapter: {name: tensor}}")
    unknown = sorted(map(str, found.keys() - ROLE_OF_ADAPTER.keys()))
    if unknown:
        raise CheckpointError(f"unknown adapters in {path}", got=unknown, expected=sorted(ROLE_OF_ADAPTER))
    needed = {"encoder_adapter", "decoder_adapter"}
    if not needed <= found.keys():
        raise CheckpointError(f"{path} lacks adapters that every stage has", got=sorted(found), expected=sorted(needed))
    for name, state in found.items():
        strange = [key for key in state if AdapterKey.parse(key) is None]
        if strange:
            raise CheckpointError(f"unexpected tensors in the adapter {name} of {path}", got=strange[:_NAMED])
        twice = [place for place, count in Counter(map(_peft_name, state)).items() if count > 1]
        if twice:
            raise CheckpointError(f"the adapter {name} of {path} has tensors twice", got=twice[:_NAMED])
    return {name: found[name] for name in ROLE_OF_ADAPTER if name in found}


def _matrices(path: Path) -> dict[str, Tensor]:
    found = _load(path)
    if not _is_state(found):
        raise CheckpointError(f"{path} is no file of tensors", expected=f"{EMBEDDINGS} and {HEAD}")
    if found.keys() != {EMBEDDINGS, HEAD}:
        raise CheckpointError(
            f"{path} holds other tensors than the embedding matrices", got=sorted(found), expected=[EMBEDDINGS, HEAD]
        )
    return dict(found)


def _is_state(state: Any) -> bool:
    return isinstance(state, dict) and all(
        isinstance(key, str) and isinstance(value, Tensor) and value.is_floating_point() for key, value in state.items()
    )


# --- converting -----------------------------------------------------------------------------------------------------


def _config(settings: Settings, adapters: dict[str, dict[str, Tensor]], base: str | None, path: Path) -> ClaraConfig:
    if base is None:
        raise CheckpointError(f"{path / CONFIG_FILE} does not name its base LLM", hint="name it with --base")
    modules = {parsed.module for state in adapters.values() for key in state if (parsed := AdapterKey.parse(key))}
    stages = {published: stage for stage, published in STAGE_NAMES.items()}
    early = stages.get(settings.training_stage or "", "instruct")
    return ClaraConfig(
        base_model=base,
        base_revision=_commit(base, settings),
        n_memory_tokens=settings.doc_max_length // settings.compr_rate,
        doc_max_tokens=settings.doc_max_length,
        distinct_memory_tokens=settings.different_mem_tokens,
        separator=settings.sep,
        lora=LoraSettings(r=settings.lora_r, target_modules=tuple(sorted(modules))),
        stage="joint" if "query_reasoner_adapter" in adapters else ("instruct" if early == "joint" else early),
    )


def _commit(base: str, settings: Settings) -> str | None:
    try:
        return hub.commit_of(base)
    except ModelError as error:
        if base != settings.decoder_model_name:
            raise
        raise ModelError(
            "the base LLM that the checkpoint records cannot be read", got=error, hint="name it with --base"
        ) from error


def _peft_shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {_peft_name(key): tuple(tensor.shape) for key, tensor in state.items()}


def _peft_name(key: str) -> str:
    parsed = AdapterKey.parse(key)
    if parsed is None:
        raise CheckpointError("no LoRA tensor", got=key)
    return parsed.peft


def _require_same(what: str, got: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> None:
    """Every tensor finds its place, and every place its tensor."""
    missing = sorted(expected.keys() - got.keys())
    extra = sorted(got.keys() - expected.keys())
    other = [
        f"{name} {got[name]}, not {shape}" for name, shape in sorted(expected.items()) if got.get(name, shape) != shape
    ]
    problems = [("lacks", missing), ("has unknown", extra), ("has, of another shape,", other)]
    for problem, names in problems:
        if names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            raise CheckpointError(
                f"{what} {problem} tensors",
                got=", ".join(names[:_NAMED]) + more,
                hint="check that the base LLM is the checkpoint's own, and lora_r in its config.json",
            )


def _split(
    matrix: Tensor,
    name: str,
    outline: BaseOutline,
    first: int,
    n_added: int,
    base_rows: dict[str, Tensor],
    report: Report,
) -> Tensor:
    """Rows of the added tokens, float32; what differs from the base's own rows goes into ``base_rows``."""
    expected = (first + n_added, outline.matrix_shape(name)[1])
    if tuple(matrix.shape) != expected:
        raise CheckpointError(
            f"the checkpoint's {name} does not fit the base model",
            got=tuple(matrix.shape),
            expected=expected,
            hint="check the base model, or different_mem_tokens in the checkpoint's config.json",
        )
    short = "embed_tokens" if name == EMBEDDINGS else "lm_head"
    n_changed = sum(
        int((chunk.float() != matrix[start : start + len(chunk)].float()).any(dim=1).sum())
        for start, chunk in outline.chunks(name, first)
    )
    place = f"rows of added tokens: {files.ROWS_FILE}"
    if n_changed:
        base_rows[short] = matrix[:first]
        place = f"{files.BASE_ROWS_FILE}: {short}; {place}"
        report.notes.append(
            f"{n_changed} of {first} known rows of {name} are not the base model's: all were kept, but plain PEFT, "
            "which loads a role without them, computes something else"
        )
    else:
        place = f"known rows are the base's own; {place}"
    report.add(f"{MATRICES_FILE}: {name}", matrix, place)
    return matrix[first:].float()


def _roles(
    config: ClaraConfig, lora: LoraConfig, adapters: dict[str, dict[str, Tensor]], report: Report
) -> Iterator[tuple[Role, LoraConfig, dict[str, Tensor]]]:
    """One role after the other, converted when it is asked for."""
    for name, role in ROLE_OF_ADAPTER.items():
        source = name
        if name not in adapters:
            source = "encoder_adapter"
            report.notes.append(
                f"this stage has no {name}; the {role} starts as a copy of the {ROLE_OF_ADAPTER[source]}"
            )
        for key, tensor in adapters[source].items():
            report.add(f"{ADAPTERS_FILE}: {source}: {key}", tensor, f"{role}/{files.ADAPTER_FILE}: {_peft_name(key)}")
        yield role, lora, {_peft_name(key): tensor.float() for key, tensor in adapters[source].items()}


def _note_settings(settings: Settings, config: ClaraConfig, report: Report) -> None:
    report.notes.append(f"generation_top_k is {settings.generation_top_k}: ask for that many documents (top_k)")
    if settings.decoder_model_name not in (None, config.base_model):
        report.notes.append(f"the base model is {config.base_model}; recorded was {settings.decoder_model_name}")
