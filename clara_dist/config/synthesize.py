"""Settings of data synthesis: which endpoint writes, what it writes of each document, and the job over a corpus."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from clara_dist.config.base import Config
from clara_dist.config.corpus import SurveyedCorpusConfig, beside

# What a prompt of one's own must hold, so that it says all that the built-in one says.
_PLACEHOLDERS = {
    "simple_prompt": ("{document}", "{n}"),
    "complex_prompt": ("{document}", "{n}"),
    "paraphrase_prompt": ("{document}", "{n}"),
    "check_prompt": ("{document}", "{material}"),
}
_OWN_FIELDS = frozenset({"model", "messages", "stream", "n", "temperature", "max_tokens", "response_format"})


class EndpointConfig(Config):
    """An OpenAI-compatible endpoint and how hard it may be worked.

    Attributes:
        base_url: Up to and with ``/v1``, such as ``http://127.0.0.1:8000/v1``. Never with a key in it.
        model: The model's name at the endpoint.
        api_key_env: Environment variable with the API key; unset: none is sent.
        api_key_file: File with the API key, in place of the variable.
        timeout_s: Longest wait for one whole answer.
        max_retries: Times that one request is sent again after a 408, 409, 425, 429, 5xx, time-out or lost connection.
        backoff_s: The n-th retry waits a random time up to ``backoff_s * 2 ** (n - 1)``.
        max_backoff_s: Bound of that time.
        max_retry_after_s: Longest ``Retry-After`` that is waited for; an endpoint that asks for more ends the job.
        max_concurrency: Requests under way at a time, of the whole job.
        requests_per_minute: In no 60 seconds are more requests sent, retries included. None: no limit.
        tokens_per_minute: The same for tokens, where a request under way counts an estimate of its prompt plus
            ``max_tokens``, and an answered one what the endpoint said. None: no limit.
        temperature: None: the endpoint's own.
        max_tokens: Of one answer; None: the endpoint's own.
        json_mode: ``json_object`` asks for ``response_format: {type: json_object}``, where the endpoint knows it.
        extra_body: Further fields of every request, such as ``{chat_template_kwargs: {enable_thinking: false}}``.
    """

    base_url: str
    model: str = Field(min_length=1)
    api_key_env: str = Field("OPENAI_API_KEY", min_length=1)
    api_key_file: str | None = None
    timeout_s: float = Field(60.0, gt=0)
    max_retries: int = Field(6, ge=0, le=100)
    backoff_s: float = Field(1.0, gt=0)
    max_backoff_s: float = Field(60.0, gt=0)
    max_retry_after_s: float = Field(600.0, gt=0)
    max_concurrency: int = Field(16, ge=1)
    requests_per_minute: float | None = Field(None, ge=1)
    tokens_per_minute: float | None = Field(None, ge=1)
    temperature: float | None = Field(0.7, ge=0)
    max_tokens: int | None = Field(2048, ge=1)
    json_mode: Literal["none", "json_object"] = "none"
    extra_body: dict[str, Any] = Field(default_factory=dict)

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError("expected http://HOST[:PORT]/v1 or https://...")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError("must hold no user, password or query: name the key by api_key_env or api_key_file")
        return url.rstrip("/")

    @field_validator("extra_body")
    @classmethod
    def _only_more(cls, extra: dict[str, Any]) -> dict[str, Any]:
        if own := sorted(_OWN_FIELDS & extra.keys()):
            raise ValueError(f"{', '.join(own)} cannot be set here: they are settings of their own, or fixed")
        return extra


class SynthesisConfig(Config):
    """What is written of every document.

    Attributes:
        n_simple: Question-answer pairs of one fact each, at most; a short document gets fewer. 0: none.
        n_complex: Pairs that join several facts, at most. 0: none.
        n_paraphrases: Paraphrases of the document. 0: none.
        max_rounds: Times that what the check found missing is written anew, and checked again. 0: only checked.
        max_attempts: Times that one answer is asked for, if it is not the JSON that was asked for, before the document
            counts as failed.
        keep_uncovered: Keep pairs and paraphrases that still leave key facts out after the last round. False: drop
            all pairs, if they do together, and each paraphrase that does.
        simple_prompt: In place of the built-in prompt; with ``{document}`` and ``{n}``.
        complex_prompt: As ``simple_prompt``.
        paraphrase_prompt: As ``simple_prompt``.
        check_prompt: With ``{document}`` and ``{material}``, the pairs or the paraphrase to check.
    """

    n_simple: int = Field(5, ge=0)
    n_complex: int = Field(3, ge=0)
    n_paraphrases: int = Field(1, ge=0)
    max_rounds: int = Field(3, ge=0)
    max_attempts: int = Field(3, ge=1)
    keep_uncovered: bool = True
    simple_prompt: str | None = None
    complex_prompt: str | None = None
    paraphrase_prompt: str | None = None
    check_prompt: str | None = None

    @model_validator(mode="after")
    def _writes_something(self) -> SynthesisConfig:
        if self.n_simple + self.n_complex + self.n_paraphrases == 0:
            raise ValueError("n_simple, n_complex and n_paraphrases are all 0: there is nothing to write")
        for name, placeholders in _PLACEHOLDERS.items():
            prompt = getattr(self, name)
            missing = [mark for mark in placeholders if prompt is not None and mark not in prompt]
            if missing:
                raise ValueError(f"{name} lacks {' and '.join(missing)}")
        return self


class SynthesizeConfig(SurveyedCorpusConfig):
    """A corpus becomes rows for the compression stage; for the fields of the corpus see `SurveyedCorpusConfig`.

    Attributes:
        output: The rows, as JSON lines in the order of the corpus: a file that every worker's node sees, or a URL.
            Beside it stand ``.failures.jsonl``, ``.summary.json``, ``.rejects.jsonl`` and the folder ``.work``, which
            keeps each document's rows for later runs.
        endpoint: Who writes. Its limits are those of the whole job.
        synthesis: What is written of each document.
        address: Ray cluster, see `session.connect`; None asks ``RAY_ADDRESS``, else starts a local Ray.
        workers: Worker processes at most; each has its share of the endpoint's limits. One can keep hundreds of
            requests under way: more are for a corpus that one process cannot read or check fast enough.
        cpus_per_worker: CPUs that each reserves.
        rows_per_unit: Rows of the corpus in one unit of work, at most; a unit is one file in the folder ``.work``.
        max_documents: Only so many documents, the first of the corpus.
        max_tokens_total: Begin no document once so many tokens (prompts and answers, those of earlier runs with the
            same settings included) have been spent; those under way are finished. Each worker has its share of them.
        max_failures: Fraction of the documents that may fail. Above it the job ends with an error.
        price_per_million_prompt_tokens: For the cost in the summary; in any currency.
        price_per_million_completion_tokens: The same of answers.
    """

    output: str = Field(min_length=1)
    endpoint: EndpointConfig
    synthesis: SynthesisConfig = SynthesisConfig()
    address: str | None = None
    workers: int = Field(1, ge=1)
    cpus_per_worker: float = Field(1, gt=0)
    rows_per_unit: int = Field(4, ge=1)
    max_documents: int | None = Field(None, ge=1)
    max_tokens_total: int | None = Field(None, ge=1)
    max_failures: float = Field(0.05, ge=0, le=1)
    price_per_million_prompt_tokens: float | None = Field(None, ge=0)
    price_per_million_completion_tokens: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _knows_both_prices(self) -> SynthesizeConfig:
        if (self.price_per_million_prompt_tokens is None) != (self.price_per_million_completion_tokens is None):
            raise ValueError("a cost needs both prices: of prompt tokens and of completion tokens")
        return self

    @property
    def rejects_path(self) -> str:
        return self.rejects or beside(self.output, ".rejects.jsonl")

    @property
    def failures_path(self) -> str:
        return beside(self.output, ".failures.jsonl")

    @property
    def summary_path(self) -> str:
        return beside(self.output, ".summary.json")

    @property
    def work_dir(self) -> str:
        return beside(self.output, ".work")

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float | None:
        """What so many tokens cost; None without prices."""
        if self.price_per_million_prompt_tokens is None or self.price_per_million_completion_tokens is None:
            return None
        per_million = prompt_tokens * self.price_per_million_prompt_tokens
        return (per_million + completion_tokens * self.price_per_million_completion_tokens) / 1e6
