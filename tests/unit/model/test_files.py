"""The model directory: what is in it, that saving and loading change no byte, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from clara_dist import __version__
from clara_dist.config import ROLES, ClaraConfig, Dtype, LoraSettings, Role
from clara_dist.errors import ModelError
from clara_dist.model import ClaraModel
from clara_dist.model.base import DTYPES, choose_attention
from clara_dist.model.files import fingerprint_fields
from tiny_models import randomize_adapters


@pytest.fixture
def clara(config: ClaraConfig) -> ClaraModel:
    model = ClaraModel.from_base(config)
    randomize_adapters(model)
    return model


def test_the_fingerprint_is_in_the_files(clara: ClaraModel, tmp_path: Path) -> None:
    clara.save_pretrained(tmp_path / "model")
    assert fingerprint_fields(tmp_path / "model") == clara.fingerprint_fields()
    quantized = fingerprint_fields(tmp_path / "model", quantization="8bit")
    assert {name for name in quantized if quantized[name] != clara.fingerprint_fields().get(name)} == {"quantization"}
    # The same base from another place is the same; without its weights there is nothing to know it by.
    moved = tmp_path / "moved"
    shutil.copytree(clara.config.base_model, moved)
    assert fingerprint_fields(tmp_path / "model", base_model=str(moved)) == clara.fingerprint_fields()
    for weights in moved.glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(ModelError, match="weights"):
        fingerprint_fields(tmp_path / "model", base_model=str(moved))


def contents(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_saving_what_was_loaded_gives_the_same_bytes(dtype: Dtype, config: ClaraConfig, tmp_path: Path) -> None:
    clara = ClaraModel.from_base(config, dtype=dtype)
    randomize_adapters(clara)
    clara.save_pretrained(tmp_path / "first")
    loaded = ClaraModel.from_pretrained(tmp_path / "first", dtype=dtype)
    loaded.save_pretrained(tmp_path / "second")
    first = contents(tmp_path / "first")
    assert contents(tmp_path / "second") == first
    # Adapters have a precision of their own: a base in half precision rounds none of them.
    ClaraModel.from_pretrained(tmp_path / "first", dtype="float16").save_pretrained(tmp_path / "through-half")
    assert contents(tmp_path / "through-half") == first
    saved = [load_file(p) for p in (tmp_path / "first").rglob("*.safetensors")]
    assert {tensor.dtype for file in saved for tensor in file.values()} == {torch.float32}
    assert len(saved) == 4
    assert loaded.base.get_input_embeddings().weight.dtype == DTYPES[dtype]


@pytest.mark.parametrize("role", ROLES)
def test_peft_alone_loads_every_role(role: Role, clara: ClaraModel, tmp_path: Path) -> None:
    clara.save_pretrained(tmp_path / "model")
    base = AutoModelForCausalLM.from_pretrained(clara.config.base_model)
    ids_BL = torch.tensor([clara.tokenizer.hf("The lighthouse at Cape Merrow")["input_ids"]])
    with torch.inference_mode():
        plain = base(input_ids=ids_BL).logits
        alone = PeftModel.from_pretrained(base, tmp_path / "model", subfolder=role)(input_ids=ids_BL).logits
        with clara.role(role):
            ours = clara.logits(clara.body(clara.embed(ids_BL)))
    assert (alone - plain).abs().max() > 0.1, "the adapter must do something, or this shows nothing"
    assert (alone[..., : ours.shape[-1]] - ours).abs().max() < 1e-5


def test_the_directory_says_what_wrote_it(clara: ClaraModel, tmp_path: Path) -> None:
    clara.save_pretrained(tmp_path / "model")
    tree = json.loads((tmp_path / "model" / "config.json").read_text())
    assert tree["format_version"] == 1
    assert tree["written_with"]["clara_dist"] == __version__
    assert tree["written_with"]["torch"] == torch.__version__
    assert {"transformers", "peft"} < tree["written_with"].keys()
    assert ClaraModel.from_pretrained(tmp_path / "model").config == clara.config


def test_a_newer_format_is_refused_before_its_fields_are(clara: ClaraModel, tmp_path: Path) -> None:
    clara.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    tree = json.loads(path.read_text()) | {"format_version": 2, "a_field_of_tomorrow": True}
    path.write_text(json.dumps(tree | {"written_with": {"clara_dist": "9.0"}}))
    with pytest.raises(ModelError, match=r"(?s)newer clara_dist.*format_version 2.*9\.0.*at most.*upgrade"):
        ClaraModel.from_pretrained(tmp_path / "model")


def test_targets_that_match_nothing_are_named_even_among_others_that_do(config: ClaraConfig) -> None:
    lora = LoraSettings(target_modules=("q_proj", "query", "mlp.up_proj", "roj"))
    with pytest.raises(ModelError, match=r"(?s)got: query, roj\n.*down_proj.*q_proj"):
        ClaraModel.from_base(config.model_copy(update={"lora": lora}))


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "model.embed_tokens"])
def test_roles_leave_embeddings_and_head_alone(target: str, config: ClaraConfig) -> None:
    lora = LoraSettings(target_modules=("q_proj", target))
    with pytest.raises(ModelError, match=rf"(?s)cannot change.*got: [\w.]*{target}.*leave them out"):
        ClaraModel.from_base(config.model_copy(update={"lora": lora}))


def test_another_attention_gives_the_same_memories(clara: ClaraModel, tmp_path: Path) -> None:
    clara.save_pretrained(tmp_path / "model")
    ids_BL = torch.arange(4, 30)[None]
    memories = []
    for name in ("sdpa", "eager"):
        loaded = ClaraModel.from_pretrained(tmp_path / "model", attn_implementation=name)
        assert loaded.base.config._attn_implementation == name
        with torch.inference_mode(), loaded.role("compressor"):
            memories.append(loaded.body(loaded.embed(ids_BL)))
    assert (memories[0] - memories[1]).abs().max() < 1e-5


def test_attention_is_chosen_by_device_type_and_what_there_is() -> None:
    best = {"supported": True, "installed": True}
    assert choose_attention("cuda", "bfloat16", **best) == "flash_attention_2"
    assert choose_attention("cuda", "float16", **best) == "flash_attention_2"
    assert choose_attention("cuda", "float32", **best) is None  # FlashAttention knows half precision only
    assert choose_attention("cpu", "bfloat16", **best) is None
    assert choose_attention("mps", "float16", **best) is None
    assert choose_attention("cuda", "bfloat16", supported=False, installed=True) is None
    assert choose_attention("cuda", "bfloat16", supported=True, installed=False) is None


def test_attention_that_this_machine_lacks_is_told(clara: ClaraModel, tmp_path: Path) -> None:
    clara.save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match=r"(?s)cannot load the base model.*[Ff]lash"):
        ClaraModel.from_pretrained(tmp_path / "model", attn_implementation="flash_attention_2")


def test_quantisation_without_its_package_is_told(
    clara: ClaraModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clara.save_pretrained(tmp_path / "model")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"(?s)4bit base needs the package bitsandbytes.*clara-dist\[quantized\]"):
        ClaraModel.from_pretrained(tmp_path / "model", quantization="4bit")
