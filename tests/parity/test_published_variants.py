"""Every option of the published layout, against plain code written from its description."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clara_dist.inference.generator import Generator
from clara_dist.model import ClaraModel, TextBatch
from clara_dist.model.apple import export_apple, import_apple
from family_models import write_base
from published_checkpoints import PlainReference, Variant, round_to_bfloat16, write_published

TEXTS = [
    "The lighthouse at Cape Merrow was built in 1871.",
    "Rain gauges on the island are emptied at nine in the morning. " * 3,  # longer than the limit
    "x",
]
QUESTION = "Who built the lighthouse?"
VARIANTS = {
    "as published, bytes": ("llama3", Variant()),  # no pad token
    "as published, metaspace": ("mistral", Variant()),  # no pad token, no system role
    "one memory token": ("mistral", Variant(distinct=False)),
    "no separator": ("llama3", Variant(sep=False)),
    "neither": ("llama3", Variant(distinct=False, sep=False)),
    "changed rows": ("mistral", Variant(changed_rows=(5, 17))),
    "first stage": ("mistral", Variant(stage="stage1", sep=False)),
    "second stage": ("llama3", Variant(stage="stage1_2")),
    "tied base": ("mistral", Variant(tied_base=True)),
    "tied base, changed rows": ("llama3", Variant(tied_base=True, changed_rows=(5, 17))),
}


@pytest.fixture(scope="module", params=list(VARIANTS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path, Variant]:
    """Base, published checkpoint, imported model, and the variant."""
    family, variant = VARIANTS[request.param]
    path = tmp_path_factory.mktemp("published")
    base = round_to_bfloat16(write_base(family, path / "base"), tied=variant.tied_base)
    published = write_published(base, path / "checkpoint", variant)
    import_apple(published, path / "model", base=str(base))
    return base, published, path / "model", variant


def encode(clara: ClaraModel, role: str, texts: list[str]) -> torch.Tensor:
    batch = TextBatch.from_ids([e.ids for e in clara.tokenizer.encode_texts(texts)], clara.tokenizer.pad_id)
    with torch.inference_mode():
        return clara.encode(role, batch).memory_BMD  # type: ignore[arg-type]


def without_padding(ids: list[int], mask: list[int]) -> list[int]:
    return [token for token, real in zip(ids, mask, strict=True) if real]


def test_imported_checkpoints_do_what_the_published_code_does(case: tuple[Path, Path, Path, Variant]) -> None:
    base, published, model_dir, variant = case
    clara = ClaraModel.from_pretrained(model_dir)
    reference = PlainReference(base, published, variant)
    batch = reference.encoder_ids(TEXTS)
    for ours, ids, mask in zip(
        clara.tokenizer.encode_texts(TEXTS), batch.input_ids.tolist(), batch.attention_mask.tolist(), strict=True
    ):
        assert ours.ids == without_padding(ids, mask) + reference.memory_ids
    memory = encode(clara, "compressor", TEXTS)
    # Padded and unpadded runs of the same weights differ by some 1e-5.
    assert (memory - reference.encode("encoder_adapter", TEXTS)).abs().max() < 1e-4
    reasoner = "query_reasoner_adapter" if variant.stage == "stage2" else "encoder_adapter"
    assert (encode(clara, "query_reasoner", [QUESTION]) - reference.encode(reasoner, [QUESTION])).abs().max() < 1e-4
    expected, prompt_embeds = reference.generate(QUESTION, memory, max_tokens=12)
    prompt = clara.tokenizer.prompt(QUESTION, len(TEXTS))
    slots = torch.tensor([i for i, token in enumerate(prompt) if token in clara.tokenizer.memory_ids])
    with torch.inference_mode():
        assert torch.equal(clara.splice(torch.tensor([prompt]), slots, memory)[0], prompt_embeds)
    stops = clara.tokenizer.stop_ids
    expected = expected[: next((i for i, token in enumerate(expected) if token in stops), len(expected))]
    assert list(Generator(clara).generate([QUESTION], [memory], max_tokens=12)[0].token_ids) == expected


def test_export_gives_the_published_tensors_back(case: tuple[Path, Path, Path, Variant], tmp_path: Path) -> None:
    base, published, model_dir, _ = case
    export_apple(model_dir, tmp_path / "out", base=str(base))
    for file in ("adapters.pth", "decoder_first_last_layers.pth"):
        before, after = (flat(torch.load(path / file, weights_only=True)) for path in (published, tmp_path / "out"))
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            assert after[name].dtype == torch.bfloat16
            assert torch.equal(after[name], tensor), name
    import_apple(tmp_path / "out", tmp_path / "again")  # the base is the one that the export names
    for file in sorted(path.relative_to(model_dir) for path in model_dir.rglob("*.safetensors")):
        assert (tmp_path / "again" / file).read_bytes() == (model_dir / file).read_bytes(), file


def flat(tree: dict[str, object], prefix: str = "") -> dict[str, torch.Tensor]:
    found = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {prefix + name: value}
    return found


def test_changed_rows_are_part_of_the_model(tmp_path: Path) -> None:
    base = round_to_bfloat16(write_base("mistral", tmp_path / "base"))
    for name, variant in (("same", Variant()), ("changed", Variant(changed_rows=(5, 17)))):
        import_apple(write_published(base, tmp_path / name, variant), tmp_path / f"{name}-model", base=str(base))
    kept = load_file(tmp_path / "changed-model" / "base_embeddings.safetensors")
    matrices = torch.load(tmp_path / "changed" / "decoder_first_last_layers.pth", weights_only=True)
    n_known = len(kept["embed_tokens"])
    assert torch.equal(kept["embed_tokens"], matrices["model.embed_tokens.weight"][:n_known])
    assert not (tmp_path / "same-model" / "base_embeddings.safetensors").exists()
    models = {name: ClaraModel.from_pretrained(tmp_path / f"{name}-model") for name in ("same", "changed")}
    fields = {name: model.fingerprint_fields() for name, model in models.items()}
    assert fields["changed"].keys() - fields["same"].keys() == {"base_embeddings"}
    models["changed"].save_pretrained(tmp_path / "saved")
    files = ["base_embeddings.safetensors", "memory_embeddings.safetensors", "generator/adapter_model.safetensors"]
    for file in files:
        assert (tmp_path / "saved" / file).read_bytes() == (tmp_path / "changed-model" / file).read_bytes()


def test_an_exported_model_emits_no_added_token(tmp_path: Path, tiny_clara_dir: Path) -> None:
    """Models made here have no LM-head rows for them: the stand-ins tie with a token of a lower id."""
    report = export_apple(tiny_clara_dir, tmp_path / "out")
    assert any("stand-ins" in note for note in report.notes)
    assert any("query_reasoner is not written" in note for note in report.notes)
    clara = ClaraModel.from_pretrained(tiny_clara_dir)
    head = torch.load(tmp_path / "out" / "decoder_first_last_layers.pth", weights_only=True)["lm_head.weight"].float()
    hidden = torch.randn(500, clara.hidden_size, generator=torch.Generator().manual_seed(0))
    assert int((hidden @ head.T).argmax(-1).max()) < clara.tokenizer.first_memory_id
    back = import_apple(tmp_path / "out", tmp_path / "back")
    assert any("stand-ins" in note for note in back.notes)
    assert "head" not in load_file(tmp_path / "back" / "memory_embeddings.safetensors")
    again = ClaraModel.from_pretrained(tmp_path / "back")
    assert again.fingerprint_fields() == clara.fingerprint_fields()
