from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from clara_dist.config import ClaraConfig, LoraSettings
from clara_dist.errors import ModelError
from clara_dist.model.batch import PromptBatch
from clara_dist.model.clara import ClaraModel
from clara_dist.model.merged import export_generator
from tiny_models import randomize_adapters


@torch.inference_mode()
def both_logits(clara: ClaraModel, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a prompt over two memories: by the generator role, and by transformers alone from the exported directory."""
    prompt = clara.tokenizer.prompt_with_answer("answer", 2, "Who built the lighthouse?", "Ada Tolliver")
    batch = PromptBatch.from_ids(
        [prompt.prompt_ids], [prompt.answer_ids], pad_id=clara.tokenizer.pad_id, memory_ids=clara.tokenizer.memory_ids
    )
    memory_TMD = torch.randn(2, 3, clara.hidden_size, generator=torch.Generator().manual_seed(1))
    ours = clara.answer_logits(batch, memory_TMD)
    clara.fuse_for_serving()
    export_generator(clara, folder)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    embeds = clara.splice(batch.input_ids_BL, batch.memory_index_S, memory_TMD)
    theirs = plain(inputs_embeds=embeds).logits[0]
    n = clara.tokenizer.first_memory_id
    known = plain.get_input_embeddings()(torch.arange(n))
    assert torch.equal(known, clara.embed(torch.arange(n)))
    return ours, theirs[batch.predict_index_P]


@pytest.mark.parametrize("family", ["mistral", "llama-tied", "qwen3", "phi3", "gemma2", "gemma3"])
def test_the_exported_generator_is_the_generator(base_dirs: dict[str, str], family: str, tmp_path: Path) -> None:
    config = ClaraConfig(base_model=base_dirs[family], n_memory_tokens=3, doc_max_tokens=24, lora=LoraSettings(r=4))
    clara = ClaraModel.from_base(config)
    randomize_adapters(clara)
    ours, theirs = both_logits(clara, tmp_path)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 1e-5 * ours.abs().max()


def test_head_rows_of_an_imported_model_come_along(tiny_clara_dir: Path, tmp_path: Path) -> None:
    clara = ClaraModel.from_pretrained(tiny_clara_dir)
    clara.head_rows = torch.randn(clara.tokenizer.n_added_tokens, clara.hidden_size)
    ours, theirs = both_logits(clara, tmp_path)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 1e-5 * ours.abs().max()


def test_roles_that_are_not_merged_cannot_be_exported(tiny_clara_dir: Path, tmp_path: Path) -> None:
    clara = ClaraModel.from_pretrained(tiny_clara_dir)
    with pytest.raises(ModelError, match="fuse_for_serving"):
        export_generator(clara, tmp_path)
    clara.merge("query_reasoner")
    with pytest.raises(ModelError, match="query_reasoner"):
        export_generator(clara, tmp_path)
