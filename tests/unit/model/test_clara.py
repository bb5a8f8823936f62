"""Roles, gradients, checkpointing, families, files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from clara_dist.config import ROLES, ClaraConfig, LoraSettings
from clara_dist.core.losses import mean_answer_loss
from clara_dist.errors import ModelError
from clara_dist.model import ClaraModel, PromptBatch, TextBatch
from tiny_models import TEXT, randomize_adapters


@pytest.fixture
def clara(config: ClaraConfig) -> ClaraModel:
    model = ClaraModel.from_base(config)
    randomize_adapters(model)
    return model


def text_batch(clara: ClaraModel, texts: list[str]) -> TextBatch:
    return TextBatch.from_ids([e.ids for e in clara.tokenizer.encode_texts(texts)], clara.tokenizer.pad_id)


def prompt_batch(clara: ClaraModel, k: int, questions: list[str]) -> PromptBatch:
    rows = [clara.tokenizer.prompt_with_answer("answer", k, q, "Ada Tolliver") for q in questions]
    return PromptBatch.from_ids(
        [r.prompt_ids for r in rows],
        [r.answer_ids for r in rows],
        pad_id=clara.tokenizer.pad_id,
        memory_ids=clara.tokenizer.memory_ids,
    )


def two_role_step(clara: ClaraModel, first: str) -> dict[str, torch.Tensor]:
    """One backward through two roles; gradients by name."""
    memory = clara.encode(first, text_batch(clara, TEXT[:2])).memory_BMD
    mean_answer_loss(clara.answer_nll(prompt_batch(clara, 1, ["Who built it?", "When?"]), memory)).backward()
    found = {name: p.grad.clone() for name, p in clara.trainable_parameters().items()}
    clara.zero_grad()
    return found


def test_padding_changes_nothing(clara: ClaraModel) -> None:
    with torch.inference_mode():
        together = clara.encode("compressor", text_batch(clara, TEXT), with_text_mean=True)
        for i, text in enumerate(TEXT):
            alone = clara.encode("compressor", text_batch(clara, [text]), with_text_mean=True)
            assert (alone.memory_BMD[0] - together.memory_BMD[i]).abs().max() < 1e-5
            assert (alone.text_mean_BD[0] - together.text_mean_BD[i]).abs().max() < 1e-5


def test_switching_roles_changes_the_function_and_leaves_requires_grad_alone(clara: ClaraModel) -> None:
    clara.set_trainable(["query_reasoner", "generator"], memory_embeddings=False)
    before = {name: p.requires_grad for name, p in clara.named_parameters()}
    batch = text_batch(clara, TEXT)
    outputs = {role: clara.encode(role, batch).memory_BMD for role in ROLES}
    assert (outputs["compressor"] - outputs["query_reasoner"]).abs().max() > 0.1
    assert (outputs["generator"] - outputs["query_reasoner"]).abs().max() > 0.1
    assert {name: p.requires_grad for name, p in clara.named_parameters()} == before
    trained = {clara.role_of(name) for name in clara.trainable_parameters()}
    assert trained == {"query_reasoner", "generator"}
    assert clara.roles.active is None


def test_nothing_runs_under_the_role_that_happened_to_run_last(clara: ClaraModel) -> None:
    with torch.inference_mode():
        clara.encode("generator", text_batch(clara, TEXT))
        with pytest.raises(ModelError, match="no role is active"):
            clara.body(torch.zeros(1, 2, clara.hidden_size))


def test_the_mean_of_large_float16_states_is_finite(config: ClaraConfig) -> None:
    clara = ClaraModel.from_base(config, dtype="float16")
    batch = text_batch(clara, TEXT)
    with torch.inference_mode():
        clara.base.base_model.norm.weight.fill_(8_000)
        mean_BD = clara.encode("compressor", batch, with_text_mean=True).text_mean_BD
    assert mean_BD is not None
    assert mean_BD.isfinite().all()
    sums_BD = mean_BD * (batch.lengths_B - 3).unsqueeze(1)
    assert sums_BD.abs().max() > 65504, "the sums must leave fp16's range, or this shows nothing"


def test_a_copied_role_is_the_same_function(clara: ClaraModel) -> None:
    clara.copy_role("compressor", "query_reasoner")
    batch = text_batch(clara, TEXT)
    with torch.inference_mode():
        compressed, reasoned = (clara.encode(role, batch).memory_BMD for role in ("compressor", "query_reasoner"))
    assert torch.equal(compressed, reasoned)


@pytest.mark.parametrize(
    ("roles", "first"),
    [(("compressor", "generator"), "compressor"), (("query_reasoner", "generator"), "query_reasoner")],
)
def test_gradient_checkpointing_gives_equal_gradients(config: ClaraConfig, roles: tuple[str, ...], first: str) -> None:
    plain_config = config.model_copy(update={"lora": LoraSettings(r=4)})
    gradients = []
    for checkpointing in (False, True):
        clara = ClaraModel.from_base(plain_config)
        randomize_adapters(clara)
        clara.set_trainable(roles, memory_embeddings=first == "compressor")
        if checkpointing:
            clara.enable_gradient_checkpointing()
        clara.train()
        gradients.append(two_role_step(clara, first))
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys()
    assert all(g.norm() > 0 for g in plain.values())
    for name, gradient in plain.items():
        assert torch.equal(gradient, recomputed[name]), name


def test_gradient_checkpointing_really_recomputes(config: ClaraConfig) -> None:
    """The equality above would also hold if checkpointing were off: count the layers' forward passes."""
    clara = ClaraModel.from_base(config)
    clara.set_trainable(("query_reasoner", "generator"), memory_embeddings=False)
    clara.enable_gradient_checkpointing()
    clara.train()
    calls = []
    clara.base.base_model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(clara.roles.active))
    two_role_step(clara, "query_reasoner")
    assert calls == ["query_reasoner", "generator", "generator", "query_reasoner"]


def test_dropout_runs_in_trained_roles_only(clara: ClaraModel) -> None:
    clara.set_trainable(["generator"], memory_embeddings=False)
    clara.train()
    batch = text_batch(clara, TEXT)
    with torch.no_grad():
        frozen = [clara.encode("compressor", batch).memory_BMD for _ in range(2)]
        trained = [clara.encode("generator", batch).memory_BMD for _ in range(2)]
    assert torch.equal(*frozen)
    assert not torch.equal(*trained)


def test_memories_must_fill_the_slots(clara: ClaraModel) -> None:
    batch = prompt_batch(clara, 2, ["Who?"])
    with pytest.raises(ModelError, match="slots"):
        clara.answer_nll(batch, torch.zeros(1, 3, clara.hidden_size))
    with pytest.raises(ModelError, match="slots"):
        clara.answer_nll(batch, None)


def test_merge_and_fuse_are_the_same_functions(config: ClaraConfig) -> None:
    def build() -> ClaraModel:
        model = ClaraModel.from_base(config)
        randomize_adapters(model)
        return model

    batch = text_batch(build(), TEXT)
    with torch.inference_mode():
        plain = build()
        expected = {role: plain.encode(role, batch).memory_BMD for role in ROLES}
        merged = build()
        merged.merge("compressor")
        assert (merged.encode("compressor", batch).memory_BMD - expected["compressor"]).abs().max() < 1e-5
        with pytest.raises(ModelError, match="no generator any more: compressor was merged"):
            merged.encode("generator", batch)
        with pytest.raises(ModelError, match="no compressor"):
            merged.fingerprint_fields()
        fused = build()
        fused.fuse_for_serving()
        for role in ("query_reasoner", "generator", "query_reasoner"):
            assert (fused.encode(role, batch).memory_BMD - expected[role]).abs().max() < 1e-5, role
        with pytest.raises(ModelError, match=r"no compressor any more: generator was merged.*\n.*generator.*reasoner"):
            fused.encode("compressor", batch)


@pytest.mark.parametrize("family", ["mistral", "llama-tied", "qwen3", "phi3", "gemma2", "gemma3"])
def test_every_family_trains_saves_and_loads(family: str, base_dirs: dict[str, str], tmp_path: Path) -> None:
    clara = ClaraModel.from_base(ClaraConfig(base_model=base_dirs[family], n_memory_tokens=2, doc_max_tokens=32))
    randomize_adapters(clara)
    clara.set_trainable(["compressor", "generator"], memory_embeddings=True)
    gradients = two_role_step(clara, "compressor")
    # LoRA on every linear layer of both roles, and the memory rows: all of them learn.
    assert len(gradients) > 2 * 2 * 2 * 4
    assert all(g.norm() > 0 for g in gradients.values())
    clara.save_pretrained(tmp_path / "model")
    loaded = ClaraModel.from_pretrained(tmp_path / "model")
    assert loaded.config == clara.config
    assert loaded.fingerprint_fields() == clara.fingerprint_fields()
    batch, prompts = text_batch(clara, TEXT), prompt_batch(clara, 2, TEXT[:2])
    with torch.inference_mode():
        memory = clara.encode("compressor", batch).memory_BMD
        assert torch.equal(loaded.encode("compressor", batch).memory_BMD, memory)
        assert torch.equal(loaded.answer_nll(prompts, memory), clara.answer_nll(prompts, memory))


def test_head_on_answer_positions_equals_the_whole_head(base_dirs: dict[str, str]) -> None:
    """Against the base model's own forward pass, soft cap included."""
    clara = ClaraModel.from_base(ClaraConfig(base_model=base_dirs["gemma2"], n_memory_tokens=2, doc_max_tokens=32))
    batch = prompt_batch(clara, 0, ["Who built it?"])
    with torch.inference_mode(), clara.role("generator"):
        whole = clara.base(input_ids=batch.input_ids_BL).logits[0].log_softmax(-1)
        expected = -whole[batch.predict_index_P, batch.labels_P]
        assert (clara.answer_nll(batch, None) - expected).abs().max() < 1e-5


def test_plain_peft_loads_a_role(clara: ClaraModel, config: ClaraConfig, tmp_path: Path) -> None:
    clara.save_pretrained(tmp_path / "model")
    base = AutoModelForCausalLM.from_pretrained(config.base_model)
    alone = PeftModel.from_pretrained(base, tmp_path / "model", subfolder="generator")
    batch = prompt_batch(clara, 0, ["Who built it?"])
    with torch.inference_mode():
        log_probs = alone(input_ids=batch.input_ids_BL).logits[0].log_softmax(-1)
        expected = clara.answer_nll(batch, None)
    assert (-log_probs[batch.predict_index_P, batch.labels_P] - expected).abs().max() < 1e-5


def test_the_fingerprint_names_what_changed(clara: ClaraModel, config: ClaraConfig) -> None:
    before = clara.fingerprint_fields()
    clara.copy_role("compressor", "query_reasoner")
    assert clara.fingerprint_fields() == before
    clara.memory_rows.data[0, 0] += 1
    after = clara.fingerprint_fields()
    assert {name for name in before if before[name] != after[name]} == {"memory_embeddings"}
    other = ClaraModel.from_base(config.model_copy(update={"doc_max_tokens": 25}))
    randomize_adapters(other)
    assert {n for n in before if before[n] != other.fingerprint_fields()[n]} == {"doc_max_tokens"}


def test_a_model_is_loaded_from_any_directory(
    config: ClaraConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Path(config.base_model)
    monkeypatch.chdir(base.parent)
    made = ClaraModel.from_base(config.model_copy(update={"base_model": base.name}))
    made.save_pretrained(tmp_path / "model")
    fields = made.fingerprint_fields()
    monkeypatch.chdir(tmp_path)
    loaded = ClaraModel.from_pretrained("model")
    assert loaded.config.base_model == str(base)
    assert loaded.fingerprint_fields() == fields


def test_damaged_model_directories_are_refused_by_name(clara: ClaraModel, tmp_path: Path) -> None:
    path = tmp_path / "model"
    clara.save_pretrained(path)
    weights = path / "generator" / "adapter_model.safetensors"
    state = load_file(weights)
    save_file({k: v for i, (k, v) in enumerate(state.items()) if i}, weights)
    with pytest.raises(ModelError, match="generator adapter does not fit"):
        ClaraModel.from_pretrained(path)
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors"):
        ClaraModel.from_pretrained(path)
    (path / "config.json").write_text('{"base_model": "x", "colour": 1}')
    with pytest.raises(ModelError, match="colour"):
        ClaraModel.from_pretrained(path)
    with pytest.raises(ModelError, match="not a model directory"):
        ClaraModel.from_pretrained(tmp_path / "nothing")


def test_targets_that_match_nothing_are_an_error(config: ClaraConfig) -> None:
    with pytest.raises(ModelError, match="target_modules"):
        ClaraModel.from_base(config.model_copy(update={"lora": LoraSettings(target_modules=("no_such_layer",))}))


def test_a_missing_role_is_an_error(config: ClaraConfig) -> None:
    clara = ClaraModel.from_base(config.model_copy(update={"roles": ("compressor", "generator")}))
    with pytest.raises(ModelError, match="no query_reasoner"):
        clara.encode("query_reasoner", text_batch(clara, TEXT[:1]))
    with pytest.raises(ModelError, match="query_reasoner"):
        clara.set_trainable(["query_reasoner"], memory_embeddings=False)


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_new_memory_rows_are_as_long_as_the_embeddings_that_the_layers_read(
    family: str, base_dirs: dict[str, str]
) -> None:
    """Gemma 3 scales its embeddings by sqrt(D) as it looks them up: 5.7 here, 62 at D 3840."""
    clara = ClaraModel.from_base(ClaraConfig(base_model=base_dirs[family], n_memory_tokens=24, doc_max_tokens=24))
    read_LD = clara.embed(torch.arange(4, 200)[None])[0]
    ratio = clara.memory_rows.norm(dim=1).mean() / read_LD.norm(dim=1).mean()
    assert 0.8 < ratio < 1.25  # of 24 rows of 32 values: 1 +- 0.03


def test_the_same_seed_gives_the_same_model(config: ClaraConfig) -> None:
    torch.manual_seed(123)
    first = ClaraModel.from_base(config, seed=5)
    torch.manual_seed(321)
    second = ClaraModel.from_base(config, seed=5)
    third = ClaraModel.from_base(config, seed=6)
    other = second.state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in first.state_dict().items())
    assert not torch.equal(first.memory_rows, third.memory_rows)
