"""Checkpoints in the published layout with random weights, and what they mean, by plain code that shares nothing.

Written from the description of the layout: tokens really added to the tokenizer, matrices really resized, texts padded
on the left to the full width, adapters never merged.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ADAPTERS = ("encoder_adapter", "query_reasoner_adapter", "decoder_adapter")
SYSTEM = (
    "You are a helpful assistant. Your task is to extract relevant information from provided documents "
    "and to answer to questions as briefly as possible."
)


@dataclass(frozen=True)
class Variant:
    """Options of a published checkpoint."""

    distinct: bool = True
    sep: bool = True
    stage: str = "stage2"
    changed_rows: tuple[int, ...] = ()
    tied_base: bool = False
    length: int = 40
    rate: int = 10
    r: int = 4

    @property
    def n_memory(self) -> int:
        return self.length // self.rate

    @property
    def new_tokens(self) -> list[str]:
        memory = [f"<MEM{i}>" for i in range(self.n_memory)] if self.distinct else ["<MEM>"]
        return [*memory, "<AE>", "<ENC>", "<SEP>"]


def round_to_bfloat16(base_dir: Path, *, tied: bool = False) -> Path:
    """Make a saved base one of bfloat16 values, as the published base is; else a checkpoint cannot hold its rows."""
    base = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.bfloat16)
    if tied:
        base.config.tie_word_embeddings = True
        base.get_output_embeddings().weight = base.get_input_embeddings().weight
    base.save_pretrained(base_dir)
    return base_dir


def write_published(base_dir: Path, path: Path, variant: Variant) -> Path:
    """Write a random checkpoint; all weights are bfloat16."""
    random = torch.Generator().manual_seed(3)
    base = AutoModelForCausalLM.from_pretrained(base_dir)
    tokenizer = AutoTokenizer.from_pretrained(base_dir)
    n_known = len(tokenizer)

    def draw(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=random) * 0.2).bfloat16()

    def matrix(weight: Tensor) -> Tensor:
        known = weight[:n_known].bfloat16()
        for row in variant.changed_rows:
            known[row] = draw(weight.shape[1])
        return torch.cat([known, draw(len(variant.new_tokens), weight.shape[1])])

    names = ADAPTERS if variant.stage == "stage2" else (ADAPTERS[0], ADAPTERS[2])
    adapters: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    for state in adapters.values():
        for layer, module in base.named_modules():
            if layer.rpartition(".")[2] in MODULES:
                n_out, n_in = module.weight.shape
                state[f"{layer}.lora_A.weight"] = draw(variant.r, n_in)
                state[f"{layer}.lora_B.weight"] = draw(n_out, variant.r)
    path.mkdir(parents=True)
    torch.save(adapters, path / "adapters.pth")
    with torch.no_grad():
        embeddings = matrix(base.get_input_embeddings().weight)
        head = matrix(base.get_output_embeddings().weight)
    torch.save(
        {"model.embed_tokens.weight": embeddings, "lm_head.weight": head}, path / "decoder_first_last_layers.pth"
    )
    settings = {
        "decoder_model_name": "/where/it/was/trained",
        "doc_max_length": variant.length,
        "compr_rate": variant.rate,
        "lora": True,
        "lora_r": variant.r,
        "sep": variant.sep,
        "different_mem_tokens": variant.distinct,
        "generation_top_k": 3,
        "training_stage": variant.stage,
    }
    (path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    return path


class PlainReference:
    """A published checkpoint, run the straight way in float32."""

    def __init__(self, base_dir: Path, path: Path, variant: Variant) -> None:
        self.variant = variant
        self.tokenizer = AutoTokenizer.from_pretrained(base_dir)
        self.tokenizer.add_special_tokens({"additional_special_tokens": variant.new_tokens})
        self.tokenizer.padding_side = "left"
        template = self.tokenizer.chat_template
        self.tokenizer.chat_template = template.replace("strftime_now('%d %b %Y')", "'26 Jul 2024'")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.bos_token
        base = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
        base.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
        matrices = torch.load(path / "decoder_first_last_layers.pth", weights_only=True)
        with torch.no_grad():
            base.get_output_embeddings().weight = torch.nn.Parameter(matrices["lm_head.weight"].float())
            base.get_input_embeddings().weight = torch.nn.Parameter(matrices["model.embed_tokens.weight"].float())
        adapters = torch.load(path / "adapters.pth", weights_only=True)
        self.model: PeftModel | None = None
        for name, state in adapters.items():
            lora = LoraConfig(
                r=variant.r, lora_alpha=2 * variant.r, target_modules=list(MODULES), task_type="CAUSAL_LM"
            )
            if self.model is None:
                self.model = PeftModel(base, lora, adapter_name=name)
            else:
                self.model.add_adapter(name, lora)
            state = {f"base_model.model.{key}": tensor.float() for key, tensor in state.items()}
            set_peft_model_state_dict(self.model, state, adapter_name=name)
        assert self.model is not None
        self.model.eval()
        names = variant.new_tokens[:-3] * (1 if variant.distinct else variant.n_memory)
        self.memory_ids = self.tokenizer.convert_tokens_to_ids(names)
        self.slot = "".join(names) + ("<SEP>" if variant.sep else "")

    def encoder_ids(self, texts: list[str]) -> Any:
        width = self.variant.length + 3
        framed = [f"<ENC>{self.tokenizer.bos_token or ''}{text}{self.tokenizer.eos_token}" for text in texts]
        return self.tokenizer(
            framed,
            add_special_tokens=False,
            truncation=True,
            max_length=width,
            padding="max_length",
            return_tensors="pt",
        )

    @torch.no_grad()
    def encode(self, adapter: str, texts: list[str]) -> Tensor:
        """Memories [B, n, D]."""
        batch = self.encoder_ids(texts)
        n = len(self.memory_ids)
        ids = torch.cat([batch.input_ids, torch.tensor([self.memory_ids] * len(texts))], dim=1)
        mask = torch.cat([batch.attention_mask, torch.ones(len(texts), n, dtype=torch.long)], dim=1)
        self.model.set_adapter(adapter)
        states = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
        return states[:, -n:]

    @torch.no_grad()
    def generate(self, question: str, memory_KMD: Tensor, max_tokens: int) -> tuple[list[int], Tensor]:
        """Greedy ids, without a cache, and the prompt's embeddings [L, D]."""
        user = f"Background:\n{self.slot * len(memory_KMD)}\n\nQuestion:{question}"
        try:
            messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]
            prompt = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception:  # templates without a system role raise an error of their own
            messages = [{"role": "user", "content": f"{SYSTEM}\n{user}"}]
            prompt = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = self.tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids[0]
        embed = self.model.get_base_model().get_input_embeddings()
        embeds = embed(ids).clone()
        embeds[torch.isin(ids, torch.tensor(self.memory_ids))] = memory_KMD.reshape(-1, memory_KMD.shape[-1])
        prompt_embeds = embeds
        self.model.set_adapter("decoder_adapter")
        out: list[int] = []
        while len(out) < max_tokens:
            token = int(self.model(inputs_embeds=embeds[None]).logits[0, -1].argmax())
            if token == self.tokenizer.eos_token_id:
                break
            out.append(token)
            embeds = torch.cat([embeds, embed(torch.tensor([token]))])
        return out, prompt_embeds
