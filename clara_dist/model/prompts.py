"""The generator's prompts: a chat template around memory slots, tokenised as one string.

Source: the published prompt of the reference checkpoints (system prompt, ``Background:``, ``Question:``), whose ids
are reproduced exactly. Deliberate difference: what a client wrote (question, answer, document text) is never read as
special tokens, and a prompt is never cut; one that is too long is an error.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerFast

from clara_dist.model.plain_text import PlainTextEncoder

Task = Literal["answer", "qa_generation", "paraphrase"]

QA_GENERATION_SYSTEM = (
    "You are a helpful assistant. Given a document, your task is to generate some single questions to cover all key "
    "information of the document and answer them sequentially."
)
PARAPHRASE_REQUEST = "\n\nParaphrase the background."

# Where client text goes while the template renders; private-use characters pass through every template untouched.
_FIELD = re.compile("\ue0c3(question|answer|text)\ue0c4")

# The switches that templates have for it: Qwen 3, GLM, SmolLM 3; Granite, DeepSeek. A template ignores the others'.
_NO_THINKING = {"enable_thinking": False, "thinking": False}


# Some templates state today's date; with the real one, prompts would be other ones every day.
_TODAY = re.compile(r"""strftime_now\((["'])(.+?)\1\)""")
_ONE_DAY = datetime.date(2024, 7, 26)


def field(name: str) -> str:
    """The mark, in a user message, of a place for client text."""
    return f"\ue0c3{name}\ue0c4"


@dataclass(frozen=True)
class _Part:
    """A special token (``token_id``), or a stretch of text with fields to fill."""

    token_id: int | None
    text: str = ""


class PromptTemplate:
    r"""Renders messages by the base model's own chat template and turns them into ids.

    Without a chat template, a plain one is used: ``bos system \\n\\n user \\n\\nAnswer: answer eos``. Templates without
    a system role get system and user joined by a newline. Thinking switches are set off where they exist, and
    templates that state today's date state a fixed one.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, plain: PlainTextEncoder, memory_tokens: Mapping[str, int]
    ) -> None:
        self._tokenizer = tokenizer
        self._plain = plain
        specials = {t.content: (i, t) for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        self._ids = {content: i for content, (i, _) in specials.items()} | dict(memory_tokens)
        # A token with lstrip / rstrip swallows the white space beside it.
        self._eats_left = {content for content, (_, t) in specials.items() if t.lstrip}
        self._eats_right = {content for content, (_, t) in specials.items() if t.rstrip}
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._special_pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self._has_system_role = self._renders_system()
        # Not by a word that the template may have too: "x" stands in Llama 3's <|begin_of_text|>.
        probe = self._apply([{"role": "user", "content": field("text") + "  "}], True)
        self._trims = not probe.partition(field("text"))[2].startswith("  ")
        self._parsed: dict[tuple[str, str, bool], list[_Part]] = {}

    def ids(self, system: str, user: str, fields: Mapping[str, str], *, answered: bool = False) -> list[int]:
        """Ids of a prompt.

        Args:
            system: System message; "" leaves it out.
            user: User message; trusted, memory tokens and `field` marks are recognised in it.
            fields: Client text by field name; never read as special tokens.
            answered: End with the assistant's message ``fields["answer"]`` and the token that closes it, rather than
                with the generation prompt.
        """
        key = (system, user, answered)
        if key not in self._parsed:
            self._parsed[key] = self._parse(self._render(system, user, answered), answered)
        if self._trims:  # whole messages, so the ends of a field only where a message ends
            fields = {
                name: text.strip() if name == "answer" else text.rstrip() if user.endswith(field(name)) else text
                for name, text in fields.items()
            }
        ids: list[int] = []
        for i, part in enumerate(self._parsed[key]):
            if part.token_id is not None:
                ids.append(part.token_id)
                continue
            # One pass, so that a field's text is never searched for fields.
            text = _FIELD.sub(lambda match: fields[match[1]], part.text)
            ids += self._plain.encode(text, at_start=i == 0)
        return ids

    def answer_ids(self, system: str, user: str, answer: str) -> list[int]:
        """Ids of what follows on the generation prompt: an answer and the token that closes it, tokenised by itself."""
        prompt, whole = (self._render(system, user, answered) for answered in (False, True))
        text = answer.strip() if self._trims else answer
        ids: list[int] = []
        for part in self._parse(whole.removeprefix(prompt), True):
            if part.token_id is not None:
                ids.append(part.token_id)
            else:
                ids += self._plain.encode(part.text.replace(field("answer"), text), at_start=False)
        return ids

    def _render(self, system: str, user: str, answered: bool) -> str:
        if system and not self._has_system_role:
            system, user = "", f"{system}\n{user}"
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": user})
        prompt = self._apply(messages, True)
        if not answered:
            return prompt
        messages.append({"role": "assistant", "content": field("answer")})
        before, mark, after = self._apply(messages, False).partition(field("answer"))
        if mark and before.startswith(prompt) and not before[len(prompt) :].strip():
            return before + mark + after
        # Some templates open an answer otherwise than they show a past one (an empty thought, for example). What is
        # learnt must follow on what the model is asked with.
        return prompt + field("answer") + after

    def _apply(self, messages: list[dict[str, str]], generation_prompt: bool) -> str:
        if self._tokenizer.chat_template is None:
            texts = {m["role"]: m["content"] for m in messages}
            system = f"{texts['system']}\n\n" if "system" in texts else ""
            rendered = f"{self._tokenizer.bos_token or ''}{system}{texts['user']}\n\nAnswer:"
            return rendered if generation_prompt else f"{rendered} {texts['assistant']}{self._tokenizer.eos_token}"
        return self._tokenizer.apply_chat_template(
            messages,
            chat_template=_TODAY.sub(lambda match: repr(_ONE_DAY.strftime(match[2])), self._tokenizer.chat_template),
            tokenize=False,
            add_generation_prompt=generation_prompt,
            **_NO_THINKING,
        )

    def _renders_system(self) -> bool:
        probe = [{"role": "system", "content": field("text")}, {"role": "user", "content": "x"}]
        try:
            return field("text") in self._apply(probe, True)
        except TemplateError:
            return False

    def _parse(self, rendered: str, answered: bool) -> list[_Part]:
        pieces = self._special_pattern.split(rendered)
        for i in range(1, len(pieces), 2):
            if pieces[i] in self._eats_left:
                pieces[i - 1] = pieces[i - 1].rstrip()
            if pieces[i] in self._eats_right:
                pieces[i + 1] = pieces[i + 1].lstrip()
        parts = [
            _Part(self._ids[piece]) if i % 2 else _Part(None, piece) for i, piece in enumerate(pieces) if i % 2 or piece
        ]
        if not answered:
            return parts
        # Supervision ends with the token that closes the answer; what templates add behind it ("\n") is not learnt.
        at = next(i for i, part in enumerate(parts) if field("answer") in part.text)
        closed = parts[: at + 2] if at + 1 < len(parts) else [*parts, _Part(self._tokenizer.eos_token_id)]
        return closed
