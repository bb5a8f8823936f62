"""What a CLaRa model is made of; the content of a model directory's ``config.json``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from clara_dist.config.base import Config

Role = Literal["compressor", "query_reasoner", "generator"]
ROLES: tuple[Role, ...] = ("compressor", "query_reasoner", "generator")
Dtype = Literal["float32", "bfloat16", "float16"]
Attention = Literal["eager", "sdpa", "flash_attention_2"]
Quantization = Literal["8bit", "4bit"]

# The published prompt (arXiv 2511.18659, reference code); apple-checkpoint parity rests on every character of it.
SYSTEM_PROMPT = (
    "You are a helpful assistant. Your task is to extract relevant information from provided documents "
    "and to answer to questions as briefly as possible."
)


class LoraSettings(Config):
    """One LoRA shape for all three roles. ``alpha`` None means 2 r, the published scale."""

    r: int = Field(16, ge=1)
    alpha: int | None = Field(None, ge=1)
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"

    @property
    def scale_alpha(self) -> int:
        return 2 * self.r if self.alpha is None else self.alpha


class ClaraConfig(Config):
    """A CLaRa model.

    Attributes:
        base_model: Hub id or local directory of the base LLM.
        base_revision: Commit of a hub base, filled in where the model is made; None for a local one.
        n_memory_tokens: M, memory tokens per document. In its place ``compression_rate`` may be given:
            ``M = doc_max_tokens // compression_rate``.
        doc_max_tokens: Document (and question) tokens that the encoder reads, without its three frame tokens
            (``<ENC>``, bos, eos); the compression rate is ``doc_max_tokens // n_memory_tokens``.
        distinct_memory_tokens: M different memory-token embeddings, or one used M times.
        separator: A ``<SEP>`` after each document's memory in the generator's prompt.
        document_template: What the compressor reads; ``{text}`` and ``{title}`` are replaced.
        system_prompt: System message of the generator's prompt; "" leaves it out.
        max_prompt_tokens: Longest generator prompt; a longer question is an error, never a silent cut.
        roles: The adapters that this model has.
        stage: The last training stage that it went through.
    """

    format_version: Literal[1] = 1
    base_model: str
    base_revision: str | None = None
    n_memory_tokens: int = Field(16, ge=1)
    doc_max_tokens: int = Field(256, ge=1)
    distinct_memory_tokens: bool = True
    separator: bool = True
    lora: LoraSettings = LoraSettings()
    document_template: str = "{text}"
    system_prompt: str = SYSTEM_PROMPT
    max_prompt_tokens: int = Field(1024, ge=1)
    roles: tuple[Role, ...] = ROLES
    stage: Literal["new", "compression", "instruct", "joint"] = "new"

    @model_validator(mode="before")
    @classmethod
    def _rate_gives_memory_tokens(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "compression_rate" not in values:
            return values
        if "n_memory_tokens" in values:
            raise ValueError("give n_memory_tokens or compression_rate, not both")
        values = dict(values)
        rate, length = values.pop("compression_rate"), values.get("doc_max_tokens", 256)
        if not isinstance(rate, int) or not isinstance(length, int) or not 1 <= rate <= length:
            raise ValueError(f"compression_rate must be an integer from 1 to doc_max_tokens ({length}), not {rate!r}")
        return values | {"n_memory_tokens": length // rate}

    @field_validator("document_template")
    @classmethod
    def _template_has_text(cls, value: str) -> str:
        if "{text}" not in value:
            raise ValueError("must contain {text}")
        return value

    @model_validator(mode="after")
    def _memory_is_shorter(self) -> ClaraConfig:
        if self.n_memory_tokens > self.doc_max_tokens:
            raise ValueError("n_memory_tokens must not exceed doc_max_tokens")
        return self

    @property
    def compression_rate(self) -> int:
        return self.doc_max_tokens // self.n_memory_tokens
