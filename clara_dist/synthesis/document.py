"""One document's training rows: written, checked for what they leave out, completed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from clara_dist.config.synthesize import SynthesisConfig
from clara_dist.errors import EndpointError, SynthesisError
from clara_dist.synthesis import prompts
from clara_dist.synthesis.answers import (
    MalformedAnswer,
    Pair,
    distinct,
    parse_missing,
    parse_pairs,
    parse_paraphrases,
)
from clara_dist.synthesis.client import ChatClient
from clara_dist.synthesis.usage import Meter, Usage

ParsedT = TypeVar("ParsedT")


@dataclass(frozen=True)
class Synthesized:
    """What came of a document.

    Attributes:
        doc_id: The document's.
        rows: Training rows of stage ``compression``, as `clara_dist.data.examples` reads them; none of a failed one.
        missing: Key facts that pairs or a paraphrase still left out after the last round.
        rounds: Rounds of writing anew that it took, the most of pairs and of any paraphrase.
        usage: Of all its requests, those that came to nothing included.
        failure: Why the document has no rows; None for one that did not fail.
    """

    doc_id: str
    rows: tuple[dict[str, Any], ...]
    missing: tuple[str, ...]
    rounds: int
    usage: Usage
    failure: str | None = None


@dataclass
class _Part:
    """Rows of one kind, and what they still leave out."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    rounds: int = 0


class Synthesizer:
    """Writes the rows of documents. Several may be under way at a time.

    Args:
        config: What to write.
        client: Who writes it.
    """

    def __init__(self, config: SynthesisConfig, client: ChatClient) -> None:
        self._config = config
        self._client = client
        self._simple = config.simple_prompt or prompts.SIMPLE
        self._complex = config.complex_prompt or prompts.COMPLEX
        self._paraphrase = config.paraphrase_prompt or prompts.PARAPHRASE
        self._check = config.check_prompt or prompts.CHECK

    async def synthesize(self, doc_id: str, text: str) -> Synthesized:
        """Write one document's rows: all that were asked for, or none and the reason.

        Args:
            doc_id: Only passed on.
            text: What is read; the rows' ``docs``, verbatim.

        Raises:
            EndpointError: The endpoint would refuse every document.
        """
        meter = Meter()
        try:
            parts = [await self._pairs(text, meter), await self._paraphrases(text, meter)]
        except EndpointError:
            raise
        except SynthesisError as error:
            return Synthesized(doc_id, (), (), 0, meter.usage, failure=str(error))
        return Synthesized(
            doc_id,
            rows=tuple(row for part in parts for row in part.rows),
            missing=tuple(distinct(fact for part in parts for fact in part.missing)),
            rounds=max(part.rounds for part in parts),
            usage=meter.usage,
        )

    async def _pairs(self, text: str, meter: Meter) -> _Part:
        """A row of simple and one of complex pairs, which are checked together: a fact needs asking for only once."""
        config = self._config
        kinds = [(self._simple, config.n_simple), (self._complex, config.n_complex)]
        asked = [(template, n) for template, n in kinds if n > 0]
        if not asked:
            return _Part()
        rows: list[list[Pair]] = []
        for template, n in asked:
            prompt = prompts.fill(template, document=text, n=n)
            rows.append(await self._ask_for_pairs(prompt, n, [], meter))
        template = asked[0][0]
        part = _Part(missing=await self._left_out(text, _as_material(rows), meter))
        while part.missing and part.rounds < config.max_rounds:
            part.rounds += 1
            n = len(part.missing)
            prompt = prompts.fill(template, document=text, n=n)
            questions = [pair.question for pairs in rows for pair in pairs]
            prompt = prompts.for_missing_pairs(prompt, questions, part.missing)
            rows[0] += await self._ask_for_pairs(prompt, n, questions, meter)
            part.missing = await self._left_out(text, _as_material(rows), meter)
        if config.keep_uncovered or not part.missing:
            part.rows = [_qa_row(pairs, text) for pairs in rows]
        return part

    async def _paraphrases(self, text: str, meter: Meter) -> _Part:
        """One row of all paraphrases, each checked by itself: each will be learnt as what the document says."""
        config = self._config
        whole, kept = _Part(), []
        if config.n_paraphrases == 0:
            return whole
        prompt = prompts.fill(self._paraphrase, document=text, n=config.n_paraphrases)
        for paraphrase in await self._ask_for_paraphrases(prompt, config.n_paraphrases, text, meter):
            rounds = 0
            missing = await self._left_out(text, paraphrase, meter)
            while missing and rounds < config.max_rounds:
                rounds += 1
                anew = prompts.fill(self._paraphrase, document=text, n=1)
                anew = prompts.for_missing_in_paraphrase(anew, paraphrase, missing)
                paraphrase = (await self._ask_for_paraphrases(anew, 1, text, meter))[0]
                missing = await self._left_out(text, paraphrase, meter)
            whole.rounds = max(whole.rounds, rounds)
            whole.missing += missing
            if (config.keep_uncovered or not missing) and paraphrase not in kept:
                kept.append(paraphrase)
        if kept:
            whole.rows = [{"data_type": "paraphrase", "question": [], "answers": kept, "docs": [text]}]
        return whole

    async def _ask_for_pairs(self, prompt: str, n: int, earlier: list[str], meter: Meter) -> list[Pair]:
        return await self._ask(prompt, lambda answer: parse_pairs(answer, at_most=n, earlier=earlier), meter)

    async def _ask_for_paraphrases(self, prompt: str, n: int, text: str, meter: Meter) -> list[str]:
        return await self._ask(prompt, lambda answer: parse_paraphrases(answer, exactly=n, document=text), meter)

    async def _left_out(self, text: str, material: str, meter: Meter) -> list[str]:
        return await self._ask(prompts.fill(self._check, document=text, material=material), parse_missing, meter)

    async def _ask(self, prompt: str, parse: Callable[[str], ParsedT], meter: Meter) -> ParsedT:
        """An answer that can be used, asked for again, with what was wrong, where it cannot."""
        reason = ""
        for _ in range(self._config.max_attempts):
            # The bad answer itself is not sent back: it may be long, and a model copies what it reads.
            content = prompts.asked_again(prompt, reason) if reason else prompt
            completion = await self._client.complete([{"role": "user", "content": content}], meter=meter)
            try:
                if completion.finish_reason == "length":
                    raise MalformedAnswer("it was cut off for its length; be briefer")
                return parse(completion.text)
            except MalformedAnswer as malformed:
                reason = str(malformed)
                self._client.count_malformed(meter)
        raise SynthesisError(
            f"no usable answer in {self._config.max_attempts} attempts",
            got=reason,
            hint="raise max_tokens or max_attempts, set json_mode, or use a better model",
        )


def _as_material(rows: list[list[Pair]]) -> str:
    return "\n".join(f"Question: {pair.question}\nAnswer: {pair.answer}" for pairs in rows for pair in pairs)


def _qa_row(pairs: list[Pair], text: str) -> dict[str, Any]:
    return {
        "data_type": "qa",
        "question": [pair.question for pair in pairs],
        "answers": [pair.answer for pair in pairs],
        "docs": [text],
    }
