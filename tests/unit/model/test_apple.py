"""What import and export refuse, list and read; that they are right is what the parity tests show."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from clara_dist.cli import main
from clara_dist.config import ClaraConfig, LoraSettings
from clara_dist.errors import CheckpointError, ModelError
from clara_dist.model import ClaraModel
from clara_dist.model.apple import Report, export_apple, import_apple
from hub_stub import running_hub

DATA = Path(__file__).parents[2] / "parity" / "data"
BASE = DATA / "base_tiny"
ADAPTERS, MATRICES = "adapters.pth", "decoder_first_last_layers.pth"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA / "clara_tiny", tmp_path / "published"))


class RunsCode:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("this would have run",)


def imported(published: Path, **options: str) -> Report:
    return import_apple(published, published.parent / "model", **({"base": str(BASE)} | options))


def refused(published: Path, message: str, **options: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        imported(published, **options)
    assert not (published.parent / "model").exists()
    assert not list(published.parent.glob(".model*"))


def change_settings(published: Path, **changes: object) -> None:
    settings = json.loads((published / "config.json").read_text(encoding="utf-8")) | changes
    settings = {name: value for name, value in settings.items() if value is not None}
    (published / "config.json").write_text(json.dumps(settings), encoding="utf-8")


def test_settings_and_files_that_are_missing(published: Path) -> None:
    change_settings(published, lora_r=None)
    refused(published, r"no \['lora_r'\]")
    change_settings(published, lora_r="8")
    refused(published, r"lora_r makes no sense.*\n.*'8'.*\n.*int")
    change_settings(published, lora_r=8, compr_rate=100)
    refused(published, "leaves no memory token")
    change_settings(published, compr_rate=16, lora=False)
    refused(published, "of a model without LoRA")
    (published / "config.json").unlink()
    refused(published, "cannot read .*config.json")


@pytest.mark.parametrize("file", [ADAPTERS, MATRICES])
def test_only_tensors_are_read(published: Path, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (published / file).read_bytes()
    torch.save({"encoder_adapter": RunsCode()}, published / file)
    refused(published, f"cannot read .*{file} as tensors")
    (published / file).write_bytes(whole[: len(whole) // 2])
    refused(published, f"cannot read .*{file} as tensors")
    torch.save({"encoder_adapter": {"x": "no tensor"}}, published / file)
    refused(published, f"{file} is no file of")
    (published / file).unlink()
    refused(published, "no published checkpoint" if file == ADAPTERS else f"cannot read .*{file}")
    assert "this would have run" not in capsys.readouterr().out


def test_adapters_that_are_not_ours_to_drop(published: Path) -> None:
    adapters = torch.load(published / ADAPTERS, weights_only=True)

    def save(**changes: dict[str, torch.Tensor]) -> None:
        torch.save(adapters | changes, published / ADAPTERS)

    key = "model.layers.0.self_attn.q_proj.lora_A.weight"
    encoder = adapters["encoder_adapter"]
    save(reranker_adapter={})
    refused(published, r"unknown adapters.*\n.*reranker_adapter")
    save(encoder_adapter=encoder | {"model.norm.weight": torch.zeros(1)})
    refused(published, r"unexpected tensors in the adapter encoder_adapter.*\n.*model\.norm\.weight")
    save(encoder_adapter={name: tensor for name, tensor in encoder.items() if name != key})
    refused(published, rf"encoder_adapter .*lacks tensors.*\n.*{key}")
    save(encoder_adapter=encoder | {key.replace("layers.0", "layers.7"): encoder[key]})
    refused(published, r"encoder_adapter .*has unknown tensors.*\n.*layers\.7")
    save(encoder_adapter=encoder | {key.replace("lora_A.", "lora_A.default."): encoder[key] + 1})
    refused(published, rf"encoder_adapter .*has tensors twice.*\n.*{key}")
    save(encoder_adapter=encoder | {key: encoder[key][:4]})
    refused(published, rf"of another shape.*\n.*{key} \(4, 64\), not \(8, 64\)")
    del adapters["decoder_adapter"]
    save()
    refused(published, r"lacks adapters that every stage has.*\n.*encoder_adapter.*\n.*decoder_adapter")


def test_matrices_of_another_base(published: Path, tiny_base_dir: Path) -> None:
    matrices = torch.load(published / MATRICES, weights_only=True)
    embeddings, head = matrices["model.embed_tokens.weight"], matrices["lm_head.weight"]
    for changed, message in (
        ({"lm_head.weight": head}, r"other tensors than the embedding matrices.*\n.*lm_head.*\n.*model\.embed_tokens"),
        (matrices | {"model.norm.weight": head}, r"other tensors than the embedding matrices.*\n.*model\.norm"),
        ({"model.embed_tokens.weight": embeddings, "lm_head.weight": head[:-1]}, "lm_head.weight does not fit"),
    ):
        torch.save(changed, published / MATRICES)
        refused(published, message)
    torch.save(matrices, published / MATRICES)
    refused(published, "encoder_adapter .*lacks tensors|has, of another shape,|has unknown", base=str(tiny_base_dir))
    with pytest.raises(ModelError, match=r"base_tiny|directory nor a model"):
        imported(published, base="")
    change_settings(published, decoder_model_name="/mnt/authors/mistral")
    with pytest.raises(ModelError, match=r"checkpoint records cannot be read[\s\S]*--base"):
        import_apple(published, published.parent / "model")


def test_a_tokenizer_that_is_longer_than_the_base(published: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    base = shutil.copytree(BASE, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["later0", "later1"])
    tokenizer.save_pretrained(base)
    matrices = torch.load(published / MATRICES, weights_only=True)
    torch.save({name: torch.cat([rows, rows[:2]]) for name, rows in matrices.items()}, published / MATRICES)
    refused(published, r"fewer embedding rows than its tokenizer.*\n.*600 rows.*\n.*602 at least", base=str(base))


def test_damage_anywhere_in_a_file_is_told(published: Path) -> None:
    whole = (published / ADAPTERS).read_bytes()
    # The pickle with the names stands at the beginning, the zip's directory at the end.
    for place in [*range(0, 3000, 60), *range(len(whole) - 600, len(whole), 40)]:
        (published / ADAPTERS).write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        # Nothing else may come out; a byte of padding or of a weight does no harm.
        with contextlib.suppress(CheckpointError, ModelError):
            imported(published)


def test_nothing_but_a_model_is_replaced(published: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("years of work")
    for out in (tmp_path / "data", tmp_path / "data" / "thesis.txt", published):
        with pytest.raises(ModelError, match=r"something else where this is to be written.*\n"):
            import_apple(published, out, base=str(BASE))
    assert (tmp_path / "data" / "thesis.txt").read_text() == "years of work"
    model = tmp_path / "model"
    model.mkdir()
    imported(published)
    imported(published)
    with pytest.raises(ModelError, match=r"something else.*\n.*\n.*adapters\.pth"):
        export_apple(model, model)
    assert (model / "config.json").exists()


def test_a_model_does_not_depend_on_where_it_was_imported(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(BASE.parent)
    imported(published, base=BASE.name)
    monkeypatch.chdir(tmp_path)
    assert ClaraModel.from_pretrained("model").config.base_model == str(BASE)


def test_every_tensor_is_listed_with_its_place(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = published.parent / "model"
    with pytest.raises(SystemExit, match="0"):
        main(["import-apple", str(published), "--out", str(out), "--base", str(BASE), "--verbose"])
    printed = capsys.readouterr().out
    report = json.loads((out / "import-report.json").read_text(encoding="utf-8"))
    adapters = torch.load(published / ADAPTERS, weights_only=True)
    expected = {f"{ADAPTERS}: {name}: {key}" for name, state in adapters.items() for key in state}
    expected |= {f"{MATRICES}: model.embed_tokens.weight", f"{MATRICES}: lm_head.weight"}
    assert {tensor["source"] for tensor in report["tensors"]} == expected
    assert all(source in printed for source in expected)
    assert "128 tensors" in printed
    assert "42  generator/adapter_model.safetensors" in printed
    assert "generation_top_k is 3" in printed


def test_one_of_several_checkpoints(published: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    for name in ("compression-16", "compression-128"):
        shutil.copytree(published, both / name)
    refused(both, r"several checkpoints.*\n.*compression-128, compression-16.*\n.*--subfolder")
    refused(both, "no checkpoint compression-4", subfolder="compression-4")
    assert imported(both, subfolder="compression-16").source == str(both / "compression-16")
    shutil.rmtree(both / "compression-128")
    assert imported(both).source == str(both / "compression-16")


def test_from_the_hub(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_hub(monkeypatch, tmp_path / "cache") as hub:
        files = {f"compression-16/{file.name}": file.read_bytes() for file in published.iterdir()}
        hub.add("apple/CLaRa", files | {"compression-16/modeling_clara.py": b"print('never')", "README.md": b""})
        hub.add("someone/base", BASE)
        import_apple("apple/CLaRa", tmp_path / "hub", base="someone/base")
        fetched = [request for request in hub.requests if "/resolve/" in request]
        assert not any("modeling" in request or request.endswith("README.md") for request in fetched)
        clara = ClaraModel.from_pretrained(tmp_path / "hub")
        assert clara.config.base_revision == hub.repos["someone/base"].sha
        named = import_apple("apple/CLaRa/compression-16", tmp_path / "named", base="someone/base")
        assert named.source.endswith("/compression-16")
        with pytest.raises(CheckpointError, match="no checkpoint compression-4"):
            import_apple("apple/CLaRa/compression-4", tmp_path / "none", base="someone/base")
        n_asked = len(hub.requests)
        with pytest.raises(CheckpointError, match="neither a directory nor a checkpoint on the Hub"):
            import_apple("/apple/CLaRa/compression-16", tmp_path / "none", base="someone/base")
        assert len(hub.requests) == n_asked  # a path that is not there is no hub id
        with pytest.raises(CheckpointError, match="two sub-folders"):
            import_apple("apple/CLaRa/compression-16", tmp_path / "none", base="x", subfolder="compression-4")
        with pytest.raises(CheckpointError, match="neither a directory nor a checkpoint on the Hub"):
            import_apple("apple/none", tmp_path / "none", base="someone/base")


PEAK = """
import resource, sys
from clara_dist.model.apple import import_apple, export_apple
from clara_dist.model.apple.outline import BaseOutline
BaseOutline.of(sys.argv[2], None)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import_apple(sys.argv[1], sys.argv[3], base=sys.argv[2])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_an_import_does_not_load_the_base(tmp_path: Path) -> None:
    """A base of 270 MB whose layers are never touched: their files do not even exist."""
    from transformers import AutoTokenizer, LlamaConfig

    base = tmp_path / "base"
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer.save_pretrained(base)
    d, v, r, layers, inner = 1024, len(tokenizer), 16, 4, 4096
    config = LlamaConfig(
        hidden_size=d, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=8, vocab_size=v,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(base)
    names = {"model.embed_tokens.weight": torch.randn(v, d).bfloat16(), "lm_head.weight": torch.randn(v, d).bfloat16()}
    save_file(names, base / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors")}
    index["weight_map"]["model.layers.0.self_attn.q_proj.weight"] = "model-00002-of-00002.safetensors"
    (base / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    published = tmp_path / "published"
    published.mkdir()
    sizes = {"self_attn.q_proj": (d, d), "self_attn.k_proj": (d, d), "self_attn.v_proj": (d, d)}
    sizes |= {"self_attn.o_proj": (d, d), "mlp.gate_proj": (d, inner), "mlp.up_proj": (d, inner)}
    sizes["mlp.down_proj"] = (inner, d)
    adapters = {
        name: {
            f"model.layers.{i}.{module}.lora_{half}.weight": torch.randn(*shape).bfloat16()
            for i in range(layers)
            for module, (n_in, n_out) in sizes.items()
            for half, shape in (("A", (r, n_in)), ("B", (n_out, r)))
        }
        for name in ("encoder_adapter", "query_reasoner_adapter", "decoder_adapter")
    }
    torch.save(adapters, published / ADAPTERS)
    added = {name: torch.cat([rows, torch.randn(7, d).bfloat16()]) for name, rows in names.items()}
    torch.save(added, published / MATRICES)
    settings = {"doc_max_length": 64, "compr_rate": 16, "lora_r": r, "sep": True, "different_mem_tokens": True}
    (published / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    one_adapter = sum(tensor.numel() for tensor in adapters["encoder_adapter"].values()) * 4
    command = [sys.executable, "-c", PEAK, str(published), str(base), str(tmp_path / "model")]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    n_base = layers * sum(n_in * n_out for n_in, n_out in sizes.values()) * 4
    read = sum((published / file).stat().st_size for file in (ADAPTERS, MATRICES))
    # What is read (mapped pages count as resident), one adapter as float32, and some for the tokenizer and the like.
    assert grown < read + 2 * one_adapter + 60e6
    assert n_base > 3 * (read + 2 * one_adapter)
    assert (tmp_path / "model" / "generator" / "adapter_model.safetensors").stat().st_size > one_adapter


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lora": LoraSettings(r=4, alpha=4)}, "lora alpha"),
        ({"system_prompt": "Be brief."}, "system_prompt"),
        ({"document_template": "{title}: {text}"}, "document_template"),
        ({"n_memory_tokens": 7, "doc_max_tokens": 24}, "n_memory_tokens"),
        ({"lora": LoraSettings(r=4, target_modules=("q_proj", "mlp.up_proj"))}, "lora.target_modules"),
    ],
)
def test_what_the_published_code_cannot_run_is_not_exported(
    tmp_path: Path, tiny_base_dir: Path, changes: dict[str, object], named: str
) -> None:
    fields = {"base_model": str(tiny_base_dir), "n_memory_tokens": 3, "doc_max_tokens": 24} | changes
    config = ClaraConfig.model_validate(fields)
    ClaraModel.from_base(config).save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match=f"no place for this {named}"):
        export_apple(tmp_path / "model", tmp_path / "out")


def test_layers_without_lora_are_exported_with_one_that_adds_nothing(tmp_path: Path, tiny_base_dir: Path) -> None:
    lora = LoraSettings(r=4, target_modules=("q_proj", "v_proj"))
    config = ClaraConfig(base_model=str(tiny_base_dir), n_memory_tokens=3, doc_max_tokens=24, lora=lora)
    ClaraModel.from_base(config).save_pretrained(tmp_path / "model")
    report = export_apple(tmp_path / "model", tmp_path / "out")
    assert any("20 tensors of layers without LoRA are zero" in note for note in report.notes)
    generator = torch.load(tmp_path / "out" / ADAPTERS, weights_only=True)["decoder_adapter"]
    assert len(generator) == 2 * 7 * 2
    assert not generator["model.layers.0.mlp.up_proj.lora_A.weight"].any()
    assert generator["model.layers.0.self_attn.q_proj.lora_A.weight"].any()
