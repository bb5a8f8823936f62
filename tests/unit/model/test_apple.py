"""What an import refuses; that it reads a published checkpoint right is what the parity tests show."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from clara_dist.errors import CheckpointError
from clara_dist.model.apple import import_apple

DATA = Path(__file__).parents[2] / "parity" / "data"
ADAPTERS, MATRICES = "adapters.pth", "decoder_first_last_layers.pth"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA / "clara_tiny", tmp_path / "published"))


class RunsCode:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("this would have run",)


def refused(published: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        import_apple(published, str(DATA / "base_tiny"))


def test_settings_and_files_that_are_missing(published: Path) -> None:
    settings = json.loads((published / "config.json").read_text(encoding="utf-8"))
    del settings["lora_r"]
    (published / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    refused(published, r"no \['lora_r'\]")
    (published / "config.json").unlink()
    refused(published, "cannot read .*config.json")


@pytest.mark.parametrize("file", [ADAPTERS, MATRICES])
def test_only_tensors_are_read(published: Path, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"encoder_adapter": RunsCode()}, published / file)
    refused(published, f"cannot read .*{file} as tensors")
    (published / file).unlink()
    refused(published, f"cannot read .*{file}")
    assert capsys.readouterr().out == ""


def test_adapters_that_are_not_ours_to_drop(published: Path) -> None:
    adapters = torch.load(published / ADAPTERS, weights_only=True)
    torch.save(adapters | {"reranker_adapter": {}}, published / ADAPTERS)
    refused(published, r"unknown adapters.*\n.*reranker_adapter")
    adapters["encoder_adapter"]["model.norm.weight"] = torch.zeros(1)
    torch.save(adapters, published / ADAPTERS)
    refused(published, r"unexpected adapter keys.*\n.*model\.norm\.weight")


def test_matrices_of_another_base(published: Path) -> None:
    matrices = torch.load(published / MATRICES, weights_only=True)
    embeddings, head = matrices["model.embed_tokens.weight"], matrices["lm_head.weight"]
    other = embeddings.clone()
    other[5] += 1
    for changed, message in (
        ({"lm_head.weight": head}, r"lacks an embedding matrix.*\n.*lm_head.*\n.*model\.embed_tokens\.weight"),
        ({"model.embed_tokens.weight": other, "lm_head.weight": head}, "model.embed_tokens.weight of known tokens"),
        ({"model.embed_tokens.weight": embeddings, "lm_head.weight": head[:-1]}, "lm_head.weight does not fit"),
    ):
        torch.save(changed, published / MATRICES)
        refused(published, message)
