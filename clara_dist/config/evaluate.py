"""An evaluation: a model, its store, questions with known answers and documents."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from clara_dist.config.base import Config
from clara_dist.config.model import Attention, Dtype, Quantization
from clara_dist.config.training import DataFormat

# Rows of the report that are there by themselves or by another option.
ROWS = (
    "BM25",
    "embedder",
    "reranker",
    "untrained reasoner",
    "joint STE",
    "reasoner",
    "oracle",
    "closed book",
    "text RAG",
)


class EvaluateConfig(Config):
    """Retrieval methods compared on the same questions, read by the model's generator.

    Attributes:
        model: Model directory. ``base_model`` overrides where its base LLM is.
        store: Memory store that this model's compressor wrote.
        store_version: None is the current one.
        questions: jsonl of ``{question_id, question, answer, positives, candidates?}``, or training rows of the joint
            stage and published data sets that say which documents hold the answer. With ``qrels``: rows of
            ``{_id, text}``, as BEIR's ``queries.jsonl``.
        qrels: Judgements in a file of their own (BEIR, TREC); then only retrieval is evaluated.
        format: The layout of the latter; ``auto`` tells it by the fields of each row.
        top_k: Documents that the generator reads.
        recall_at: The k of the Recall@k columns.
        max_tokens: Longest answer.
        device: ``auto`` takes a GPU if the cluster has one.
        attn_implementation: None: FlashAttention 2 on a GPU in half precision where it is installed, else SDPA.
        quantization: Keep the base LLM in 8 or 4 bits (bitsandbytes, on a GPU); as the store was compressed.
        threads: torch threads on a CPU.
        text_rag: Also have the generator answer from the text of what the model's reasoner finds.
        embedder: Also rank by this ``sentence-transformers`` model (a directory or hub id).
        reranker: Also have this ``sentence-transformers`` cross-encoder rank again the 50 best of BM25.
        reasoners: Further rows by name, such as ``{hard: runs/b/model}``: the query reasoner of another model
            directory, trained otherwise on the same base and compressor. The generator stays that of ``model``.
        workers: Each has a model of its own, and asks ``questions_per_task`` questions at a time.
        latency_questions: So many questions are asked one at a time as well, for the percentiles of ``latency.json``.
        output: Directory for ``report.json``, ``table.txt``, ``report.html``, ``answers.parquet`` (a row for each
            question, method and scope), ``runs/`` (TREC) and ``latency.json``; None writes nothing.
        resume: Go on with an evaluation in ``output`` that did not end: what is finished is not asked again.
        published: Figures to be shown beside ours, such as ``{"joint STE, candidates, R@5": 0.962}``.
    """

    model: str
    base_model: str | None = None
    store: str
    store_version: int | None = Field(None, ge=1)
    questions: str
    qrels: str | None = None
    format: DataFormat = "auto"
    top_k: int = Field(1, ge=1)
    recall_at: tuple[int, ...] = Field((1, 3, 5), min_length=1)
    max_tokens: int = Field(32, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Dtype = "float32"
    attn_implementation: Attention | None = None
    quantization: Quantization | None = None
    threads: int = Field(1, ge=1)
    text_rag: bool = False
    embedder: str | None = None
    reranker: str | None = None
    reasoners: dict[str, str] = Field(default_factory=dict)
    workers: int = Field(1, ge=1)
    questions_per_task: int = Field(512, ge=1)
    latency_questions: int = Field(20, ge=0)
    output: str | None = None
    resume: bool = False
    published: dict[str, float] = Field(default_factory=dict)

    @field_validator("reasoners")
    @classmethod
    def _have_rows_of_their_own(cls, reasoners: dict[str, str]) -> dict[str, str]:
        taken = sorted(set(reasoners) & set(ROWS))
        if taken:
            raise ValueError(f"there is a row {taken[0]!r} already; call the reasoner something else")
        return reasoners
