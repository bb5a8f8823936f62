"""Serving: one YAML for `clara-dist serve`, `serve run` and `serve deploy`."""

from __future__ import annotations

import ipaddress
from typing import Literal

from pydantic import Field, model_validator

from clara_dist.config.base import Config
from clara_dist.config.model import Attention, Dtype, Quantization

EngineKind = Literal["transformers", "vllm"]


class LimitsConfig(Config):
    """Bounds on everything that a client can send or make the server wait for.

    Attributes:
        max_question_chars: Longest question; the model's own bounds in tokens come on top.
        max_top_k: Most documents of one answer.
        max_tokens: Longest answer.
        max_body_bytes: Largest request body, checked while it arrives and before it is parsed.
        max_documents: Most documents that one request adds or removes.
        max_document_chars: Longest text of a document that is added.
        max_documents_bytes: ``max_body_bytes`` of ``/v1/documents``.
        max_queued_requests: Requests that wait for the engine beyond those that it holds (two batches per replica);
            one more is answered 429.
        body_timeout_s: Time for a body to arrive; then 408.
        request_timeout_s: Time for an answer; then 504. A server that is stopped or updated lets what it has begun run
            on for so long.
        shard_timeout_s: Time for a retriever's search, and for a lost one to be replaced; then its part of the store
            counts as lost.
    """

    max_question_chars: int = Field(4_000, ge=1)
    max_top_k: int = Field(20, ge=1)
    max_tokens: int = Field(512, ge=1)
    max_body_bytes: int = Field(65_536, ge=1)
    max_documents: int = Field(100, ge=1)
    max_document_chars: int = Field(100_000, ge=1)
    max_documents_bytes: int = Field(4 << 20, ge=1)
    max_queued_requests: int = Field(128, ge=0)
    body_timeout_s: float = Field(10.0, gt=0)
    request_timeout_s: float = Field(120.0, gt=0)
    shard_timeout_s: float = Field(15.0, gt=0)


class ServeConfig(Config):
    """A served model and its store.

    Attributes:
        model: Model directory; a path must be readable by the replicas.
        base_model: Where the model's base LLM is, if not where its ``config.json`` says.
        store: Memory store that this model's compressor wrote.
        store_version: Version to serve; None is the newest.
        store_refresh_s: How often to look for a newer version, which is then served without a pause; 0: never. Has a
            meaning only where ``store_version`` is None.
        index: ``none``: search exactly; ``auto``: by the index of the served version, if it has one; ``required``: do
            not start without one. See ``clara-dist index build``.
        host: Address that HTTP listens on. Any other than loopback needs an API key.
        api_key_env: Environment variable of the ingress process with the accepted API keys, separated by commas. On
            loopback it may be unset; then only clients on loopback are answered.
        api_key_file: File of further keys, one a line, on every node with an ingress; a change of it is noticed.
        top_k: Documents per answer where the request does not say.
        max_tokens: Longest answer where the request does not say.
        model_name: What OpenAI's clients call the model.
        engine: What decodes answers; ``vllm`` must be installed on the replicas, and holds a second copy of the base.
        batch_size: Most answers that are decoded together, and most questions that are retrieved together.
        batch_tokens: Upper bound of answers * (longest prompt + its max_tokens), which bounds the memory of keys and
            values; an answer that is longer by itself is decoded alone.
        stream_interval_s: Text of a stream is sent at most so often: every message costs processor time on its way.
        batch_wait_s: How long the first question that is to be retrieved waits for others.
        device: ``auto`` is a GPU where the cluster has one.
        attn_implementation: None: FlashAttention 2 on a GPU in half precision where it is installed, else SDPA.
        quantization: Keep the base LLM in 8 or 4 bits (bitsandbytes, on a GPU); as the store was compressed.
        threads: torch threads of each engine and retriever replica on a CPU.
        engine_cpus: Ray CPUs of an engine replica. With the defaults all deployments fit on one CPU; on a cluster with
            CPU engines set it to ``threads``.
        engine_gpus: Ray GPUs of an engine replica on a GPU; less than 1 shares one.
        retriever_shards: Parts that the store is divided into, each a deployment of its own with ``retriever_replicas``
            replicas, which holds nothing but its shards of the store.
        on_lost_shard: What becomes of questions while a part does not answer. ``error``: 503; ``partial``: they are
            answered from the other parts, and the reply's ``missing_shards`` says so.
        allow_writes: Offer ``POST`` and ``DELETE /v1/documents``, to everybody who may ask. A replica of its own holds
            another copy of the model, and compresses what comes.
        writer_cpus: Ray CPUs of it.
        writer_gpus: Ray GPUs of it; 0: it compresses on a CPU.
        ingress_replicas: Processes that take HTTP requests; a second one takes over where the first is lost.
        start_timeout_s: Longest wait for the deployments, model loading included.
    """

    model: str
    store: str
    base_model: str | None = None
    store_version: int | None = Field(None, ge=1)
    store_refresh_s: float = Field(10.0, ge=0)
    index: Literal["none", "auto", "required"] = "auto"
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65_535)
    api_key_env: str = "CLARA_API_KEY"
    api_key_file: str | None = None
    top_k: int = Field(5, ge=1)
    max_tokens: int = Field(64, ge=1)
    limits: LimitsConfig = LimitsConfig()
    model_name: str = Field("clara", min_length=1, max_length=200)
    engine: EngineKind = "transformers"
    batch_size: int = Field(16, ge=1)
    batch_tokens: int = Field(65_536, ge=1)
    batch_wait_s: float = Field(0.002, ge=0)
    stream_interval_s: float = Field(0.1, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Dtype = "float32"
    attn_implementation: Attention | None = None
    quantization: Quantization | None = None
    threads: int = Field(1, ge=1)
    engine_replicas: int = Field(1, ge=1)
    engine_cpus: float = Field(0.5, gt=0)
    engine_gpus: float = Field(1, gt=0)
    retriever_shards: int = Field(1, ge=1)
    on_lost_shard: Literal["error", "partial"] = "error"
    retriever_replicas: int = Field(1, ge=1)
    retriever_cpus: float = Field(0.25, gt=0)
    allow_writes: bool = False
    writer_cpus: float = Field(0.25, gt=0)
    writer_gpus: float = Field(0, ge=0)
    ingress_replicas: int = Field(1, ge=1)
    start_timeout_s: float = Field(600.0, gt=0)

    @model_validator(mode="after")
    def _defaults_are_allowed(self) -> ServeConfig:
        for name, limit in (("top_k", self.limits.max_top_k), ("max_tokens", self.limits.max_tokens)):
            if getattr(self, name) > limit:
                raise ValueError(f"{name} {getattr(self, name)} exceeds its limit {limit}")
        return self

    @model_validator(mode="after")
    def _generator_can_be_merged(self) -> ServeConfig:
        if self.engine == "vllm" and self.quantization is not None:
            raise ValueError("engine vllm serves a merged generator, and a quantised base cannot be merged with")
        return self

    @model_validator(mode="after")
    def _what_is_written_is_served(self) -> ServeConfig:
        if self.allow_writes and (self.store_version is not None or self.store_refresh_s == 0):
            raise ValueError(
                "allow_writes needs a server that follows its store: store_version null, store_refresh_s > 0"
            )
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is the machine itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
