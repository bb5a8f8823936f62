"""The model directory: config, tokenizer, one PEFT folder per role, and the rows of the added tokens.

::

    DIR/config.json                        ClaraConfig, and the versions of what wrote it
    DIR/tokenizer.json ...                 the base's tokenizer, as saved by transformers
    DIR/<role>/adapter_config.json         PEFT's own layout, loadable by PEFT alone
    DIR/<role>/adapter_model.safetensors
    DIR/memory_embeddings.safetensors      memory [M or 1, D], frame [3, D], head [n_added, D] (imported models only)
    DIR/base_embeddings.safetensors        rows of the base's embed_tokens and lm_head that an imported model changed
                                           (PEFT alone does not read them: its logits are other ones then)
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import LoraConfig, set_peft_model_state_dict
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from clara_dist import __version__
from clara_dist.config.model import ClaraConfig, Quantization, Role
from clara_dist.errors import ModelError
from clara_dist.model import base as base_models
from clara_dist.model import hub
from clara_dist.model.clara import AnyModel, ClaraModel
from clara_dist.model.identity import base_fields, document_fields
from clara_dist.model.tokens import ClaraTokenizer

CONFIG_FILE = "config.json"
ROWS_FILE = "memory_embeddings.safetensors"
BASE_ROWS_FILE = "base_embeddings.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"
_VERSIONS = "written_with"
_INCOMPLETE = "the model directory is incomplete"


def new_model(
    cls: type[AnyModel],
    config: ClaraConfig,
    load_base: base_models.BaseLoader,
    *,
    device: str | torch.device,
    seed: int,
) -> AnyModel:
    """See `ClaraModel.from_base`."""
    revision = hub.commit_of(config.base_model, config.base_revision)
    config = config.model_copy(update={"base_revision": revision})
    base = load_base(config.base_model, revision=revision)
    base_models.require_known_head(base)
    hf = base_models.load_tokenizer(config.base_model, revision=revision)
    tokenizer = ClaraTokenizer(hf, config, base_models.stop_ids(base))
    # Through the module, not its weight: Gemma 3 scales what it looks up by sqrt(D).
    known_ids = torch.arange(tokenizer.first_memory_id, device=base.device)
    embeddings = base.get_input_embeddings()(known_ids).detach().float()
    n_rows = tokenizer.n_added_tokens
    # LoRA's A is drawn from the global generator by PEFT; both draws are repeatable from the one seed.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rows = embeddings.mean(0) + embeddings.std(0) * torch.randn(n_rows, embeddings.shape[1]).to(embeddings.device)
        return cls(config, base, tokenizer, rows[:-3], rows[-3:], None).to(device)


def load_model(
    cls: type[AnyModel],
    path: Path,
    load_base: base_models.BaseLoader,
    *,
    device: str | torch.device,
    base_model: str | None,
    token: str | bool | None,
) -> AnyModel:
    """See `ClaraModel.from_pretrained`."""
    config = read_config(path)
    base_path = base_models.resolve_base(config.base_model, path, base_model)
    revision = config.base_revision if base_path == config.base_model else None
    revision = hub.commit_of(base_path, revision, token=token)
    config = config.model_copy(update={"base_model": base_path, "base_revision": revision})
    base = load_base(base_path, revision=revision)
    base_rows = _read_tensors(path / BASE_ROWS_FILE) if (path / BASE_ROWS_FILE).exists() else {}
    base_models.replace_rows(base, base_rows)
    hf = base_models.load_tokenizer(str(path))
    tokenizer = ClaraTokenizer(hf, config, base_models.stop_ids(base))
    rows = _read_tensors(path / ROWS_FILE)
    d = base.get_input_embeddings().weight.shape[1]
    shapes = {"memory": (tokenizer.n_added_tokens - 3, d), "frame": (3, d)}
    if "head" in rows:
        shapes["head"] = (tokenizer.n_added_tokens, d)
    found = {name: tuple(tensor.shape) for name, tensor in rows.items()}
    if found != shapes:
        raise ModelError(f"{path / ROWS_FILE} does not fit the base model", got=found, expected=shapes)
    clara = cls(config, base, tokenizer, rows["memory"], rows["frame"], rows.get("head"), base_rows)
    for role in config.roles:
        load_role(clara, role, _read_tensors(path / role / ADAPTER_FILE))
    return clara.to(device)


def load_role(clara: ClaraModel, role: str, state: dict[str, Tensor]) -> None:
    """Put a role's weights in place; every tensor must find its place and every place its tensor."""
    expected = {name: tuple(t.shape) for name, t in clara.role_state(role).items()}  # type: ignore[arg-type]
    found = {name: tuple(t.shape) for name, t in state.items()}
    if expected != found:
        differing = sorted(set(expected.items()) ^ set(found.items()))
        raise ModelError(
            f"the {role} adapter does not fit the base model and lora settings",
            got=f"{len(differing)} differing entries, first: {differing[:2]}",
            expected=f"{len(expected)} tensors",
        )
    set_peft_model_state_dict(clara.peft, state, adapter_name=role)


def read_role(path: Path, role: Role) -> dict[str, Tensor]:
    """One role's weights of a model directory, for `load_role`.

    Raises:
        ModelError: It has no such role, or the file is damaged.
    """
    return _read_tensors(path / role / ADAPTER_FILE)


def save_model(clara: ClaraModel, path: Path) -> None:
    """See `ClaraModel.save_pretrained`. Writes beside the target and renames, so a reader never sees half a model."""
    with replaced_directory(path, ROWS_FILE) as staging:
        _write(clara, clara.config, staging)


def push_model(
    clara: ClaraModel,
    repo_id: str,
    *,
    base_model: str | None,
    private: bool | None,
    token: str | bool | None,
    commit_message: str,
) -> str:
    """See `ClaraModel.push_to_hub`."""
    base, revision = clara.config.base_model, clara.config.base_revision
    if base_model is not None and base_model != base:
        base, revision = base_model, None
    if os.path.isdir(base):
        raise ModelError(
            "the base LLM is a directory on this machine, where nobody else can load it from",
            got=base,
            hint="pass base_model=, the hub id of the same weights",
        )
    revision = hub.commit_of(base, revision, token=token)
    config = clara.config.model_copy(update={"base_model": base, "base_revision": revision})
    with TemporaryDirectory() as folder:
        _write(clara, config, Path(folder))
        Path(folder, "README.md").write_text(hub.model_card(config, repo_id), encoding="utf-8")
        return hub.push_directory(Path(folder), repo_id, private=private, token=token, commit_message=commit_message)


def _write(clara: ClaraModel, config: ClaraConfig, path: Path) -> None:
    """Fill an empty directory; the same model gives the same bytes."""
    rows = {"memory": clara.memory_rows, "frame": clara.frame_rows}
    if clara.head_rows is not None:
        rows["head"] = clara.head_rows
    roles = [(role, clara.peft.peft_config[role], clara.role_state(role)) for role in config.roles]
    write_directory(path, config, clara.tokenizer.hf, roles, rows, clara.base_rows)


def write_directory(
    path: Path,
    config: ClaraConfig,
    tokenizer: PreTrainedTokenizerFast,
    roles: Iterable[tuple[Role, LoraConfig, Mapping[str, Tensor]]],
    rows: Mapping[str, Tensor],
    base_rows: Mapping[str, Tensor],
) -> None:
    """Fill an empty directory with a model. ``roles`` is asked for one role after the other."""
    if os.path.isdir(config.base_model):
        # Whoever loads the model may stand in another directory, as every worker does.
        config = config.model_copy(update={"base_model": os.path.abspath(config.base_model)})
    tokenizer.save_pretrained(path)
    tree = config.model_dump(mode="json") | {_VERSIONS: _versions()}
    (path / CONFIG_FILE).write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
    for role, lora, state in roles:
        (path / role).mkdir()
        save_file(_for_saving(state), path / role / ADAPTER_FILE, metadata={"format": "pt"})
        settings = copy.copy(lora)
        settings.base_model_name_or_path, settings.revision = config.base_model, config.base_revision
        if not isinstance(settings.target_modules, str):
            # A set of strings has another order in every process.
            settings.target_modules = sorted(settings.target_modules)
        settings.save_pretrained(str(path / role))
    save_file(_for_saving(rows), path / ROWS_FILE, metadata={"format": "pt"})
    if base_rows:
        save_file(_for_saving(base_rows), path / BASE_ROWS_FILE, metadata={"format": "pt"})


def _versions() -> dict[str, str]:
    return {"clara_dist": __version__} | {name: version(name) for name in ("torch", "transformers", "peft")}


def read_config(path: Path) -> ClaraConfig:
    """The `ClaraConfig` of a model directory, without loading any weight."""
    try:
        tree = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not a model directory", got=f"no readable {CONFIG_FILE}") from error
    versions = tree.pop(_VERSIONS, {}) if isinstance(tree, dict) else {}
    newest = ClaraConfig.model_fields["format_version"].default
    if isinstance(tree, dict) and isinstance(tree.get("format_version"), int) and tree["format_version"] > newest:
        raise ModelError(
            f"{path} was written by a newer clara_dist",
            got=f"format_version {tree['format_version']}, written with {versions}",
            expected=f"format_version {newest} at most",
            hint="upgrade clara_dist",
        )
    try:
        return ClaraConfig.model_validate(tree)
    except ValidationError as error:
        raise ModelError(f"{path / CONFIG_FILE} is not a CLaRa configuration", got=error) from error


def memory_shape(path: Path) -> tuple[int, int]:
    """M and D of a model directory's memories, without loading any weight."""
    try:
        with safe_open(path / ROWS_FILE, "pt") as rows:
            return read_config(path).n_memory_tokens, rows.get_slice("memory").get_shape()[1]
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot read {path / ROWS_FILE}", got=error, hint=_INCOMPLETE) from error


def fingerprint_fields(
    path: Path, *, base_model: str | None = None, quantization: Quantization | None = None
) -> dict[str, str]:
    """`ClaraModel.fingerprint_fields` of a model directory, from its files: the base is hashed and never loaded.

    Args:
        path: Model directory.
        base_model: Where its base LLM is, if not where ``config.json`` says.
        quantization: That the base would be loaded with.

    Raises:
        ModelError: The directory is incomplete, or the base cannot be read.
    """
    config = read_config(path)
    base = base_models.resolve_base(config.base_model, path, base_model)
    revision = hub.commit_of(base, config.base_revision if base == config.base_model else None)
    config = config.model_copy(update={"base_model": base, "base_revision": revision})
    tokenizer = ClaraTokenizer(base_models.load_tokenizer(str(path)), config)
    base_rows = _read_tensors(path / BASE_ROWS_FILE) if (path / BASE_ROWS_FILE).exists() else {}
    rows = _read_tensors(path / ROWS_FILE)
    fields = base_fields(config, tokenizer.fingerprint(), quantization, base_rows)
    return fields | document_fields(config, _read_tensors(path / "compressor" / ADAPTER_FILE), rows)


@contextmanager
def replaced_directory(path: Path, replaces: str) -> Iterator[Path]:
    """A directory to fill, which takes ``path``'s place when the block ends, or vanishes when it fails.

    Args:
        path: What to make or replace.
        replaces: A file that tells what may be replaced; a directory without it is somebody's data, unless it is empty.

    Raises:
        ModelError: There is something else.
    """
    path = Path(os.path.abspath(path))
    if path.exists() and not (path.is_dir() and ((path / replaces).exists() or not any(path.iterdir()))):
        raise ModelError(
            "there is something else where this is to be written",
            got=path,
            expected=f"a new or empty directory, or an earlier one with {replaces}, which is replaced",
            hint="name another directory",
        )
    staging = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    staging.mkdir(parents=True)
    try:
        yield staging
        # A directory cannot be replaced in one step: the old one steps aside first.
        old = staging.with_name(staging.name + ".old")
        if path.exists():
            os.replace(path, old)
        os.replace(staging, path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _for_saving(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot read {path}", got=error, hint=_INCOMPLETE) from error
