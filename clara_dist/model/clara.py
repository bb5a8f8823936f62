"""A CLaRa model: one frozen base LLM, three LoRA roles, and the embeddings of the added tokens."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from peft import get_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import is_flash_attention_requested

from clara_dist.config.model import Attention, ClaraConfig, Dtype, Quantization, Role
from clara_dist.core.losses import token_nll
from clara_dist.errors import ModelError
from clara_dist.model import base as base_models
from clara_dist.model.batch import Encoded, PackedTexts, PromptBatch, TextBatch
from clara_dist.model.identity import base_fields, document_fields
from clara_dist.model.roles import RoleSwitch, add_roles
from clara_dist.model.tokens import ClaraTokenizer

Trainable = Role | Literal["memory_embeddings"]
AnyModel = TypeVar("AnyModel", bound="ClaraModel")
logger = logging.getLogger(__name__)


class ClaraModel(nn.Module):
    """The model. Nothing here knows of a cluster.

    Build it with `from_base` or `from_pretrained`. It is frozen until `set_trainable` is called.

    Attributes:
        config: Its `ClaraConfig`; ``base_model`` and ``base_revision`` say where the base was loaded from.
        tokenizer: Its `ClaraTokenizer`.
        memory_rows: Parameter ``[M or 1, D]``, the memory tokens' input embeddings.
        frame_rows: Buffer ``[3, D]``, the embeddings of ``<AE>``, ``<ENC>``, ``<SEP>``; never trained, as published.
        head_rows: Buffer ``[n_added, D]`` or None: LM-head rows of the added tokens. Only imported checkpoints have
            them; without them the generator cannot emit an added token.
        base_rows: First rows of the base's ``embed_tokens`` and ``lm_head`` that an imported checkpoint changed, as
            they are in its files; the base has them already.
    """

    frame_rows: Tensor
    head_rows: Tensor | None

    def __init__(
        self,
        config: ClaraConfig,
        base: PreTrainedModel,
        tokenizer: ClaraTokenizer,
        memory_rows: Tensor,
        frame_rows: Tensor,
        head_rows: Tensor | None,
        base_rows: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.base_rows = dict(base_rows or {})
        self.tokenizer = tokenizer
        self.quantization = base_models.quantization_of(base)
        self.peft = add_roles(base, config)
        self.memory_rows = nn.Parameter(memory_rows, requires_grad=False)
        self.register_buffer("frame_rows", frame_rows)
        self.register_buffer("head_rows", head_rows)
        self._finish_logits = base_models.LogitsFinish.of(base)
        self.roles = RoleSwitch(self.peft)
        self.requires_grad_(False)
        self.eval()

    # --- building, loading, saving ------------------------------------------------------------------------------

    @classmethod
    def from_base(
        cls: type[AnyModel],
        config: ClaraConfig,
        *,
        dtype: Dtype = "float32",
        device: str | torch.device = "cpu",
        attn_implementation: Attention | None = None,
        quantization: Quantization | None = None,
        seed: int = 0,
    ) -> AnyModel:
        """A new model on ``config.base_model``: LoRA B = 0, memory rows drawn like the base's own embeddings.

        Raises:
            ModelError: The base cannot be loaded, or one of ``lora.target_modules`` matches nothing.
        """
        from clara_dist.model import files

        load = base_models.base_loader(dtype, device, attn_implementation, quantization)
        return files.new_model(cls, config, load, device=device, seed=seed)

    @classmethod
    def from_pretrained(
        cls: type[AnyModel],
        path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        base_model: str | None = None,
        dtype: Dtype = "float32",
        device: str | torch.device = "cpu",
        attn_implementation: Attention | None = None,
        quantization: Quantization | None = None,
    ) -> AnyModel:
        """Load a model directory or a model on the Hub.

        Adapters and added rows are float32 whatever ``dtype`` is, in memory and in files.

        Args:
            path: Directory, or a hub id where there is no such directory.
            revision: Branch, tag or commit on the Hub.
            token: For the model and its base, where they are private or gated; None is the one of `hf auth login`.
            base_model: Where its base LLM is, if not where ``config.json`` says.
            dtype: What the base LLM computes in.
            device: Where it runs.
            attn_implementation: None: FlashAttention 2 on a GPU in half precision where it is installed, else SDPA.
            quantization: Keep the base LLM's linear layers in 8 or 4 bits (bitsandbytes, on a CUDA GPU). Roles are then
                never merged into it, and memories differ from the unquantised model's: stores do not mix.

        Raises:
            ModelError: A file is missing or damaged, a tensor is missing, unexpected or of another shape, a newer
                version wrote the directory, or the Hub does not give it.
        """
        from clara_dist.model import files, hub

        load = base_models.base_loader(dtype, device, attn_implementation, quantization, token)
        directory = hub.model_directory(path, revision=revision, token=token)
        return files.load_model(cls, directory, load, device=device, base_model=base_model, token=token)

    def save_pretrained(self, path: str | Path) -> None:
        """Write the model directory, whole or not at all: config, tokenizer, one PEFT folder per role, added rows.

        The base LLM is not copied: ``config.json`` names it, a hub base with its commit.
        """
        from clara_dist.model import files

        files.save_model(self, Path(path))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        base_model: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload a CLaRa model",
    ) -> str:
        """Save to a repository on the Hub, with a model card; the commit's URL.

        Args:
            repo_id: ``user/name``; created if it does not exist.
            base_model: The hub id that others load the base LLM from. Needed where it came from a local directory;
                the weights must be the same. Its current commit is recorded. Stores written with the directory are
                then refused by name: their fingerprint has the directory's content in place of the commit.
            private: Of a new repository.
            token: As `huggingface_hub` takes it.
            commit_message: First line of the commit.

        Raises:
            ModelError: The base LLM is a local directory, which nobody else could load, or the Hub refuses.
        """
        from clara_dist.model import files

        return files.push_model(
            self, repo_id, base_model=base_model, private=private, token=token, commit_message=commit_message
        )

    # --- what it is ---------------------------------------------------------------------------------------------

    @property
    def base(self) -> PreTrainedModel:
        return cast(PreTrainedModel, self.peft.get_base_model())

    @property
    def hidden_size(self) -> int:
        return self.memory_rows.shape[1]

    @property
    def n_memory_tokens(self) -> int:
        return self.config.n_memory_tokens

    @property
    def device(self) -> torch.device:
        return self.memory_rows.device

    @property
    def dtype(self) -> torch.dtype:
        return self.base.get_input_embeddings().weight.dtype

    def fingerprint_fields(self) -> dict[str, str]:
        """Everything that decides a document's memory, field by field; the memory store keeps them.

        Raises:
            ModelError: The compressor was merged away; ask before merging.
        """
        rows = {"memory": self.memory_rows, "frame": self.frame_rows}
        return self._base_fields | document_fields(self.config, self.role_state("compressor"), rows)

    @cached_property
    def _base_fields(self) -> dict[str, str]:
        return base_fields(self.config, self.tokenizer.fingerprint(), self.quantization, self.base_rows)

    # --- roles and training -------------------------------------------------------------------------------------

    def role(self, role: Role) -> AbstractContextManager[None]:
        """Run the body's forward passes as ``role``; ``requires_grad`` is left alone."""
        return self.roles.use(role)

    def set_trainable(self, roles: Collection[Role], *, memory_embeddings: bool) -> None:
        """Choose what a stage trains; call once, before the optimiser is built.

        Dropout runs in the LoRA of trained roles only: a frozen role is the same function in every step.
        """
        missing = set(roles) - set(self.config.roles)
        if missing:
            raise ModelError("cannot train roles that the model does not have", got=sorted(missing))
        self._trained = frozenset(roles)
        for name, parameter in self.peft.named_parameters():
            parameter.requires_grad_(self.role_of(name) in roles)
        self.memory_rows.requires_grad_(memory_embeddings)
        self.train(self.training)

    _trained: frozenset[Role] = frozenset()

    def train(self, mode: bool = True) -> ClaraModel:
        """Training mode; the LoRA dropout of frozen roles stays off."""
        super().train(mode)
        for name, module in self.peft.named_modules():
            if "lora_dropout." in name and not any(f"lora_dropout.{role}" in name for role in self._trained):
                module.eval()
        return self

    def role_of(self, parameter_name: str) -> Trainable | None:
        """The role that owns a parameter (by its name within this model), ``memory_embeddings``, or None: the base."""
        parts = parameter_name.split(".")
        if parts[-1] == "memory_rows":
            return "memory_embeddings"
        if len(parts) >= 3 and parts[-3].startswith("lora_"):
            return cast(Role, parts[-2])
        return None

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def added_tensors(self) -> dict[str, Tensor]:
        """All that this model adds to its base, by name within it: the roles' LoRA and the rows of the added tokens."""
        rows = dict(self.named_buffers(recurse=False)) | {"memory_rows": self.memory_rows}
        return rows | {name: p for name, p in self.peft.named_parameters(prefix="peft") if self.role_of(name)}

    def role_state(self, role: Role) -> dict[str, Tensor]:
        """One role's LoRA weights under PEFT's own file keys."""
        state = get_peft_model_state_dict(self.peft, adapter_name=role, save_embedding_layers=False)
        if not state:
            raise ModelError(f"this model has no {role}", hint="it was never there, or merging dropped it")
        return cast(dict[str, Tensor], state)

    @torch.no_grad()
    def copy_role(self, source: Role, target: Role) -> None:
        """Make ``target`` start as ``source`` (the reasoner starts the joint stage as the compressor)."""
        weights = dict(self.peft.named_parameters())
        for name, parameter in weights.items():
            if self.role_of(name) == target:
                parameter.copy_(weights[name.replace(f".{target}.", f".{source}.")])

    def enable_gradient_checkpointing(self) -> None:
        """Recompute each layer in the backward pass, under the role of its forward pass."""
        self.base._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=self.roles.checkpoint_function())

    def merge(self, role: Role) -> None:
        """Fold one role into the base for inference; afterwards only it can run, at no LoRA cost.

        A quantised base stays as it is: rounding a sum to 8 or 4 bits would lose most of the adapter.
        """
        if self._can_merge():
            self.roles.merge(role)

    def fuse_for_serving(self) -> None:
        """Generator folded into the base, reasoner kept as a rank-2r correction of it; the compressor is dropped.

        As `merge`, this leaves a model on a quantised base as it is.
        """
        if self._can_merge():
            self.roles.fuse(merged="generator", kept="query_reasoner")

    def _can_merge(self) -> bool:
        if self.quantization is not None:
            logger.warning("the base is quantised to %s: the roles run as LoRA, unmerged", self.quantization)
        return self.quantization is None

    # --- forward passes -----------------------------------------------------------------------------------------

    def embed(self, ids_BL: Tensor) -> Tensor:
        """Input embeddings ``[B, L, D]``; added ids read the added rows, which get gradients if they are trained."""
        first = self.tokenizer.first_memory_id
        table = torch.cat([self.memory_rows, self.frame_rows]).to(self.dtype)
        is_added = ids_BL >= first
        known = self.base.get_input_embeddings()(ids_BL.masked_fill(is_added, 0))
        added = table[(ids_BL - first).clamp(min=0)]
        return torch.where(is_added.unsqueeze(-1), added, known)

    def body(self, embeds_BLD: Tensor, **packing: Any) -> Tensor:
        """Hidden states ``[B, L, D]`` after the final norm; causal, no LM head, no cache, under the active role.

        Args:
            embeds_BLD: Input embeddings.
            packing: Where the texts of a packed row begin and end, as transformers' attention takes it.

        Raises:
            ModelError: No role is active. PEFT would run whichever ran last.
        """
        if self.roles.active is None:
            raise ModelError("no role is active", hint="call it inside `with clara.role(...)`")
        return self.base.base_model(inputs_embeds=embeds_BLD, use_cache=False, **packing).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """LM head: ``[..., D] -> [..., V]``, added tokens included if the model has head rows for them.

        V counts the tokenizer's ids: rows that the base has beyond them, to round its matrix up, stand for no token.
        """
        logits = self.base.get_output_embeddings()(hidden)[..., : self.tokenizer.first_memory_id]
        if self.head_rows is not None:
            logits = torch.cat([logits, hidden @ self.head_rows.to(hidden.dtype).T], dim=-1)
        return self._finish_logits(logits)

    def encode(self, role: Role, batch: TextBatch, *, with_text_mean: bool = False) -> Encoded:
        """Texts -> memories (role ``compressor``) or questions -> queries (``query_reasoner``).

        Gradients reach the role's LoRA and the memory rows where they are trained. ``text_mean`` is what the
        compression stage's alignment loss compares the memory's mean with.
        """
        m = self.n_memory_tokens
        with self.role(role):
            hidden_BLD = self.body(self.embed(batch.input_ids_BL))
        starts_B = batch.lengths_B - m
        index_BM = starts_B.unsqueeze(1) + torch.arange(m, device=starts_B.device)
        memory_BMD = hidden_BLD.gather(1, index_BM.unsqueeze(-1).expand(-1, -1, hidden_BLD.shape[-1]))
        if not with_text_mean:
            return Encoded(memory_BMD, None)
        is_text_BL = torch.arange(hidden_BLD.shape[1], device=starts_B.device) < starts_B.unsqueeze(1)
        # In fp32: a sum over hundreds of states can leave fp16's range.
        text_sum_BD = (hidden_BLD * is_text_BL.unsqueeze(-1)).sum(1, dtype=torch.float32)
        return Encoded(memory_BMD, text_sum_BD / starts_B.unsqueeze(1))

    @property
    def packs(self) -> bool:
        """Whether the attention implementation reads packed texts without a mask: flash attention does."""
        return is_flash_attention_requested(self.base.config)

    def encode_packed(self, role: Role, texts: PackedTexts) -> Tensor:
        """`encode` without padding: memories ``[B, M, D]`` of texts that stand in one row.

        Equal to `encode` but for rounding, with every attention implementation; it is fast only where `packs`. Others
        take the borders as an ``L x L`` mask.
        """
        with self.role(role):
            hidden_1LD = self.body(
                self.embed(texts.input_ids_1L),
                position_ids=texts.position_ids_1L,
                cu_seq_lens_q=texts.borders,
                cu_seq_lens_k=texts.borders,
                max_length_q=texts.longest,
                max_length_k=texts.longest,
            )
        last_M = torch.arange(-self.n_memory_tokens, 0, device=texts.borders.device)
        return hidden_1LD[0, texts.borders[1:, None] + last_M]

    def splice(self, ids_BL: Tensor, memory_index_S: Tensor, memory_TMD: Tensor | None) -> Tensor:
        """Prompt embeddings ``[B, L, D]`` with the memory slots overwritten by T memories, in order.

        Raises:
            ModelError: The memories do not fill the slots exactly.
        """
        embeds_BLD = self.embed(ids_BL)
        n_given = 0 if memory_TMD is None else memory_TMD.shape[0] * memory_TMD.shape[1]
        if n_given != len(memory_index_S):
            raise ModelError("memories and prompt slots differ", got=n_given, expected=len(memory_index_S))
        if memory_TMD is None:
            return embeds_BLD
        d = embeds_BLD.shape[-1]
        flat = embeds_BLD.reshape(-1, d).index_copy(0, memory_index_S, memory_TMD.reshape(-1, d).to(embeds_BLD.dtype))
        return flat.view_as(embeds_BLD)

    def answer_logits(self, batch: PromptBatch, memory_TMD: Tensor | None) -> Tensor:
        """Logits ``[P, V]`` that predict the supervised tokens; arguments as of `answer_nll`."""
        with self.role("generator"):
            hidden_BLD = self.body(self.splice(batch.input_ids_BL, batch.memory_index_S, memory_TMD))
        return self.logits(hidden_BLD.reshape(-1, hidden_BLD.shape[-1])[batch.predict_index_P])

    def answer_nll(self, batch: PromptBatch, memory_TMD: Tensor | None) -> Tensor:
        """Negative log-likelihood ``[P]``, fp32, of the supervised tokens.

        Args:
            batch: Prompts with answers.
            memory_TMD: The T memories of all rows' slots, row-major (T = sum of k over rows); None without slots.
                Gradients flow into it.
        """
        return token_nll(self.answer_logits(batch, memory_TMD), batch.labels_P)
