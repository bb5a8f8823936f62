"""The generator as a plain LLM, for engines that know nothing of roles."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from clara_dist.errors import ModelError
from clara_dist.model.clara import ClaraModel


@torch.no_grad()
def export_generator(clara: ClaraModel, path: Path) -> None:
    """Write base and generator, one set of weights, as transformers keeps a causal LM: config and safetensors.

    Its vocabulary is that of `ClaraModel.logits`: rows that the base has beyond its tokenizer's ids are left out, the
    added tokens' are in it if the model has head rows for them. No tokenizer is written: prompts are what
    `ClaraModel.splice` makes.

    Args:
        clara: A model whose generator is part of the base's weights: `ClaraModel.fuse_for_serving`.
        path: An empty directory.

    Raises:
        ModelError: The generator was not merged, as it is on a quantised base.
    """
    if clara.roles.merged != "generator":
        raise ModelError(
            "only a generator that was merged into its base can be exported",
            got=f"merged: {clara.roles.merged}",
            hint="call fuse_for_serving() first; a quantised base cannot be merged with",
        )
    base, n_known = clara.base, clara.tokenizer.first_memory_id
    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    name_of = {module: name for name, module in base.named_modules() if module is embeddings or module is head}
    weights = {
        name.replace(".base_layer.", "."): weight for name, weight in base.state_dict().items() if ".lora_" not in name
    }
    tied = head.weight is embeddings.weight and clara.head_rows is None
    added_rows = None if clara.head_rows is None else torch.cat([clara.memory_rows, clara.frame_rows])
    table, rows = f"{name_of[embeddings]}.weight", f"{name_of[head]}.weight"
    weights[table] = _with_rows(weights[table][:n_known], added_rows)
    if tied:
        del weights[rows]
    else:
        weights[rows] = _with_rows(weights[rows][:n_known], clara.head_rows)
    if (bias := f"{name_of[head]}.bias") in weights:
        no_bias = None if clara.head_rows is None else torch.zeros(len(clara.head_rows))
        weights[bias] = _with_rows(weights[bias][:n_known], no_bias)

    config = copy.deepcopy(base.config)
    config.architectures = [type(base).__name__]
    config.tie_word_embeddings = tied
    config.get_text_config().vocab_size = len(weights[table])
    config.save_pretrained(path)
    contents = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    save_file(contents, path / "model.safetensors", metadata={"format": "pt"})


def _with_rows(known: Tensor, added: Tensor | None) -> Tensor:
    return known if added is None else torch.cat([known, added.to(known)])
