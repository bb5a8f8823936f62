"""OpenAI's messages, as far as they have a meaning here. What has none is refused by name, never ignored in silence."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from clara_dist.config.http import Filter, LatentWord, Question, RetrieveReply, question_text

# Fields that change nothing about the answer: who asks, and how OpenAI would bill, route, cache or keep it.
_WITHOUT_EFFECT = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
)
# Fields that would change the answer, with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A turn of a chat. ``content`` is text, or a list of text parts."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part] | None = None

    @property
    def text(self) -> str:
        content = self.content or ""
        return content if isinstance(content, str) else "\n".join(part.text for part in content)


class StreamOptions(BaseModel):
    """``include_usage``: a last chunk without choices has the usage."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    include_usage: bool = False


class ClaraOptions(BaseModel):
    """What OpenAI's interface has no word for; ``extra_body={"clara": {"top_k": 3}}`` in its Python client.

    ``explain``: say what the question's vectors decode to, in `Extra.words`; of streamed chats and completions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    top_k: int | None = Field(None, ge=1)
    where: Filter | None = None
    explain: bool = False


StopText = Annotated[str, Field(min_length=1, max_length=256)]


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    clara: ClaraOptions = ClaraOptions()

    @model_validator(mode="before")
    @classmethod
    def _means_something_here(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for name, neutral in _NEUTRAL.items():
            value = values.get(name)
            if value is not None and value not in neutral:
                raise ValueError(f"{name} is not supported")
        return {name: value for name, value in values.items() if name not in _NEUTRAL and name not in _WITHOUT_EFFECT}

    @property
    def stop_texts(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ChatRequest(_Request):
    """``POST /v1/chat/completions``. The last message is the question; the model reads no earlier ones."""

    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_completion_tokens: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _ends_with_a_question(self) -> ChatRequest:
        if self.messages[-1].role != "user":
            raise ValueError("the last of messages must be the user's: it is the question")
        question_text(self.messages[-1].text)
        return self

    @property
    def question(self) -> str:
        return self.messages[-1].text

    @property
    def answer_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionRequest(_Request):
    """``POST /v1/completions``. The prompt is the question."""

    prompt: Question | Annotated[list[Question], Field(min_length=1, max_length=1)]

    @property
    def question(self) -> str:
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]

    @property
    def answer_tokens(self) -> int | None:
        return self.max_tokens


class Extra(RetrieveReply):
    """The one field that OpenAI's objects do not have: sources, timings and versions.

    ``unread_messages`` counts the messages before the question, which the model does not read.
    """

    unread_messages: int = 0
    words: list[list[LatentWord]] = []  # noqa: RUF012 - pydantic copies it


class OpenAIUsage(BaseModel):
    """``prompt_tokens`` counts memory tokens, too."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ModelCard(BaseModel):
    """One served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "clara_dist"


class ModelList(BaseModel):
    """``GET /v1/models``."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
