"""From text to the ids of encoder inputs and generator prompts, and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from clara_dist.config.model import ClaraConfig
from clara_dist.errors import ModelError, TokenizationError
from clara_dist.model.plain_text import PlainTextEncoder
from clara_dist.model.prompts import PARAPHRASE_REQUEST, QA_GENERATION_SYSTEM, PromptTemplate, Task, field


@dataclass(frozen=True)
class EncodedText:
    """An encoder input: ``ids`` = framed text + M memory ids; ``n_tokens`` counts the framed text alone."""

    ids: list[int]
    n_tokens: int
    truncated: bool


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt and, in training, its answer with the closing token; a ``truncated`` answer ends without it."""

    prompt_ids: list[int]
    answer_ids: list[int]
    truncated: bool = False


class ClaraTokenizer:
    """The base model's tokenizer with CLaRa's added ids.

    The added tokens ``<MEM0>..``, ``<AE>``, ``<ENC>``, ``<SEP>`` get the ids behind the tokenizer's last one, in the
    order of the published checkpoints, but never enter the tokenizer itself: no text can produce them.

    Attributes:
        memory_ids: M ids (the same one M times if memory tokens are not distinct).
        first_memory_id: Every id from here on is an added one.
        stop_ids: Ids that end an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, config: ClaraConfig, stop_ids: Sequence[int] = ()) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError("a fast tokenizer is needed", got=type(tokenizer).__name__)
        if tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no EOS token", hint="set eos_token in tokenizer_config.json")
        self.hf = tokenizer
        self.config = config
        self._plain = PlainTextEncoder(tokenizer)
        n_rows = config.n_memory_tokens if config.distinct_memory_tokens else 1
        self.first_memory_id = max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1)
        rows = [self.first_memory_id + i for i in range(n_rows)]
        self.memory_ids = rows if config.distinct_memory_tokens else rows * config.n_memory_tokens
        self.ae_id, self.enc_id, self.sep_id = (self.first_memory_id + n_rows + i for i in range(3))
        names = [f"<MEM{i}>" for i in range(n_rows)] if config.distinct_memory_tokens else ["<MEM>"]
        added = dict(zip(names, rows, strict=True)) | {"<AE>": self.ae_id, "<ENC>": self.enc_id, "<SEP>": self.sep_id}
        self._slot = "".join(names if config.distinct_memory_tokens else names * config.n_memory_tokens)
        self._slot += "<SEP>" if config.separator else ""
        self._template = PromptTemplate(tokenizer, self._plain, added)
        closing = self._template.ids("", "x", {"answer": "x"}, answered=True)[-1]
        self.stop_ids = frozenset({tokenizer.eos_token_id, closing, *stop_ids})
        flags = tokenizer.added_tokens_decoder
        self._strip_left = tokenizer.bos_token_id in flags and flags[tokenizer.bos_token_id].rstrip
        self._strip_right = tokenizer.eos_token_id in flags and flags[tokenizer.eos_token_id].lstrip

    @property
    def pad_id(self) -> int:
        """What stands on padding. Nothing reads it, so any id does; the published choice is pad, else bos, else eos."""
        for token_id in (self.hf.pad_token_id, self.hf.bos_token_id, self.hf.eos_token_id):
            if token_id is not None:
                return int(token_id)
        raise AssertionError("unreachable: the tokenizer has an EOS")

    @property
    def n_added_tokens(self) -> int:
        return self.sep_id + 1 - self.first_memory_id

    # --- encoder inputs -----------------------------------------------------------------------------------------

    def document_text(self, title: str, text: str) -> str:
        """What the compressor reads of a document, by ``config.document_template``."""
        # One pass over the template: a title that contains "{text}" stays what it is.
        pieces = self.config.document_template.split("{text}")
        return text.join(piece.replace("{title}", title) for piece in pieces)

    def encode_text(self, text: str) -> EncodedText:
        """`encode_texts` of one text."""
        return self.encode_texts([text])[0]

    def encode_texts(self, texts: Sequence[str]) -> list[EncodedText]:
        """Encoder inputs of documents or questions.

        The ids of the string ``<ENC>`` + bos + text + eos, cut on the right at ``doc_max_tokens + 3`` (EOS is lost
        then), followed by the M memory ids; the same for documents and questions (reference behaviour, kept).
        """
        if self._strip_left or self._strip_right:
            texts = [t.lstrip() if self._strip_left else t for t in texts]
            texts = [t.rstrip() if self._strip_right else t for t in texts]
        bos = [self.hf.bos_token_id] if self.hf.bos_token_id is not None else []
        limit = self.config.doc_max_tokens + 3
        encoded = []
        for text_ids in self._plain.encode_batch(texts):
            framed = [self.enc_id, *bos, *text_ids, self.hf.eos_token_id]
            cut = framed[:limit]
            encoded.append(EncodedText(cut + self.memory_ids, len(cut), len(framed) > limit))
        return encoded

    def encode_questions(self, questions: Sequence[str]) -> list[EncodedText]:
        """`encode_texts` of questions. A question is never cut in silence, as the reference does.

        Raises:
            TokenizationError: A question is longer than the query reasoner reads.
        """
        encoded = self.encode_texts(questions)
        for question, text in zip(questions, encoded, strict=True):
            if text.truncated:
                raise TokenizationError(
                    "the question is too long for this model",
                    got=f"{question[:60]!r}...",
                    expected=f"at most {self.config.doc_max_tokens} tokens (doc_max_tokens)",
                    hint="shorten the question",
                )
        return encoded

    def token_ends(self, text: str) -> list[int]:
        """Where each token of a text ends, in characters, ascending."""
        return self._plain.token_ends(text)

    # --- generator prompts --------------------------------------------------------------------------------------

    def prompt(self, question: str, k: int) -> list[int]:
        """Generation prompt over k memory slots; k = 0 asks without documents (closed book).

        Raises:
            TokenizationError: The prompt is longer than ``config.max_prompt_tokens``.
        """
        return self._prompt_ids("answer", k, {"question": question})

    def prompt_with_answer(
        self, task: Task, k: int, question: str, answer: str, *, cut_answer: bool = False
    ) -> TokenizedPrompt:
        """Training prompt of a task over k memory slots, with the ids of its answer and closing token.

        Args:
            task: What is asked.
            k: Slots.
            question: Empty for tasks that ask none.
            answer: What is to be learnt.
            cut_answer: Cut an answer that does not fit, rather than refuse it. It keeps one token at least, and is not
                closed: nothing is learnt about where it ends.

        Raises:
            TokenizationError: The prompt is longer than ``config.max_prompt_tokens``, with its answer or, if that may
                be cut, with the first token of it.
        """
        return self._with_answer(task, k, {"question": question}, answer, cut_answer)

    def text_prompt(self, question: str, texts: Sequence[str]) -> list[int]:
        """Generation prompt with documents as text in place of memories."""
        return self._prompt_ids("answer", None, {"question": question, "text": "\n".join(texts)})

    def text_prompt_with_answer(
        self, task: Task, question: str, texts: Sequence[str], answer: str, *, cut_answer: bool = False
    ) -> TokenizedPrompt:
        """`prompt_with_answer` with documents as text in place of memories."""
        return self._with_answer(task, None, {"question": question, "text": "\n".join(texts)}, answer, cut_answer)

    def text_span(self, prompt_ids: Sequence[int], texts: Sequence[str]) -> tuple[int, int]:
        """Where the documents stand in a text prompt, as ``[start, end)``.

        Raises:
            TokenizationError: The prompt does not contain the documents' tokens as one run: one straddles an edge.
        """
        text_ids = self._plain.encode("\n".join(texts))
        for start in range(len(prompt_ids) - len(text_ids) + 1):
            if list(prompt_ids[start : start + len(text_ids)]) == text_ids:
                return start, start + len(text_ids)
        raise TokenizationError("the documents' tokens are not a run of the prompt", got=texts)

    def decode(self, ids: Sequence[int]) -> str:
        """Answer text of generated ids; added and special ids are left out."""
        return self.hf.decode([i for i in ids if i < self.first_memory_id], skip_special_tokens=True).strip()

    def _messages(self, task: Task, k: int | None) -> tuple[str, str]:
        background = field("text") if k is None else self._slot * k
        if task == "qa_generation":
            # The published text; a model whose system prompt is left out leaves this one out too.
            return QA_GENERATION_SYSTEM if self.config.system_prompt else "", f"Background:\n{background}"
        request = PARAPHRASE_REQUEST if task == "paraphrase" else f"\n\nQuestion:{field('question')}"
        return self.config.system_prompt, f"Background:\n{background}{request}"

    def _prompt_ids(self, task: Task, k: int | None, fields: dict[str, str]) -> list[int]:
        ids = self._template.ids(*self._messages(task, k), fields)
        self._require_fit(len(ids))
        return ids

    def _with_answer(
        self, task: Task, k: int | None, fields: dict[str, str], answer: str, cut_answer: bool
    ) -> TokenizedPrompt:
        prompt = self._prompt_ids(task, k, fields)
        whole = self._template.ids(*self._messages(task, k), fields | {"answer": answer}, answered=True)
        answer_ids = whole[len(prompt) :]
        if whole[: len(prompt)] != prompt:
            # A token of the whole straddles the border, as it never will in front of an answer that is being written.
            answer_ids = self._template.answer_ids(*self._messages(task, k), answer)
        self._require_fit(len(prompt) + (1 if cut_answer else len(answer_ids)))
        room = self.config.max_prompt_tokens - len(prompt)
        return TokenizedPrompt(prompt, answer_ids[:room], len(answer_ids) > room)

    def _require_fit(self, n_tokens: int) -> None:
        if n_tokens > self.config.max_prompt_tokens:
            raise TokenizationError(
                "the prompt is too long",
                got=f"{n_tokens} tokens",
                expected=f"at most {self.config.max_prompt_tokens} (max_prompt_tokens)",
                hint="shorten the question or the answer, or use fewer documents",
            )

    def fingerprint(self) -> str:
        """Content hash of what decides ids."""
        tree = json.loads(self.hf.backend_tokenizer.to_str())
        tree["truncation"] = tree["padding"] = None
        tree["frame"] = [self.hf.bos_token_id, self.hf.eos_token_id]
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
