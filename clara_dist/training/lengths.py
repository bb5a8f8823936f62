"""How long a stage's examples are, in tokens, and which of them do not fit; measured while they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clara_dist.config.training import StageConfig
from clara_dist.data.examples import Example, ExampleRow
from clara_dist.errors import DataError, TokenizationError
from clara_dist.model import ClaraTokenizer, TokenizedPrompt

_SAMPLE = 2000
# What a template may add to a prompt beyond its frame and the bytes of its texts: a prefix space, tokens at the seams.
_SEAMS = 8


@dataclass(frozen=True)
class Spread:
    """How numbers are spread. Percentiles are those of numpy, linear between two numbers."""

    n: int
    min: int
    mean: float
    p50: float
    p95: float
    p99: float
    max: int

    @classmethod
    def of(cls, values: Sequence[int]) -> Spread | None:
        """None of no numbers."""
        if not values:
            return None
        p50, p95, p99 = np.percentile(values, (50, 95, 99)).tolist()
        return cls(len(values), min(values), float(np.mean(values)), p50, p95, p99, max(values))


@dataclass(frozen=True)
class DataLengths:
    """What a stage's data holds. Lengths are in tokens, of every ``every``-th example; counts are of all of them.

    Attributes:
        rows: Rows that were read.
        examples: Examples that they make.
        left_out: Questions that their paragraphs do not answer.
        without_positives: Examples of the joint stage that do not know which candidate holds the answer.
        every: 1 if every example was measured.
        question: As the query reasoner reads it, its frame included, the memory tokens not.
        answer: With its closing token; a cut one as far as it fits.
        prompt: The generator's, with its memory slots and the answer.
        document: As the compressor reads it, cut to ``doc_max_tokens``; None where the store has them.
        documents: Number of documents of an example, or of its candidates.
        cut_answers: Answers that do not fit whole into ``max_prompt_tokens``.
        cut_documents: Of the measured documents, how many are longer than ``doc_max_tokens``.
    """

    rows: int
    examples: int
    left_out: int
    without_positives: int
    every: int
    question: Spread | None
    answer: Spread | None
    prompt: Spread | None
    document: Spread | None
    documents: Spread | None
    cut_answers: int
    cut_documents: int

    @classmethod
    def from_report(cls, report: dict[str, Any]) -> DataLengths:
        """What `dataclasses.asdict` made a dictionary of."""
        spreads = {name: Spread(**value) for name, value in report.items() if isinstance(value, dict)}
        return cls(**(report | spreads))


@dataclass
class _Sample:
    """Values of every ``every``-th example: from so many on, half of them go and it becomes twice as many.

    It is spread over the whole of the data, whose length nobody knows before its end, and the same every time.
    """

    every: int = 1
    n: int = 0
    taken: list[tuple[int | None, ...]] = field(default_factory=list)

    def wants_next(self) -> bool:
        self.n += 1
        return (self.n - 1) % self.every == 0

    def add(self, values: tuple[int | None, ...]) -> None:
        self.taken.append(values)
        if len(self.taken) >= 2 * _SAMPLE:
            self.taken, self.every = self.taken[::2], 2 * self.every

    def spreads(self, n_columns: int) -> list[Spread | None]:
        columns = list(zip(*self.taken, strict=True)) or [()] * n_columns
        return [Spread.of([value for value in column if value is not None]) for column in columns]


class LengthMeter:
    """Measures examples as they pass; refuses data that cannot be trained on, with the place of the first such row.

    Every example's fit is known for certain: a text has at most as many tokens as bytes, and what could then be too
    long is tokenised. (A tokenizer whose normaliser lengthens texts may find one more; the step that meets it ends the
    run with the same message.)

    Args:
        stage: The stage.
        tokenizer: None: rows are counted, and no tokens.

    Attributes:
        rows: Rows seen so far.
    """

    def __init__(self, stage: StageConfig, tokenizer: ClaraTokenizer | None) -> None:
        self._stage = stage
        self._tokenizer = tokenizer
        self.rows = self._left_out = self._without_positives = self._cut = self._cut_documents = 0
        self._too_long: list[str] = []
        self._n_too_long = 0
        self._first_cut = ""
        self._sample = _Sample()
        self._document_lengths: list[int] = []
        self._counts = _Sample()
        self._frames: dict[tuple[str, int], int] = {}

    def add(self, place: str, row: ExampleRow | None) -> None:
        """Measure a row.

        Raises:
            DataError: It has fewer candidates than the stage reads documents.
        """
        self.rows += 1
        if row is None:
            self._left_out += 1
            return
        joint = self._stage.stage == "joint"
        if joint:
            self._require_candidates(place, row)
            self._without_positives += not row.positives
        if self._counts.wants_next():
            self._counts.add((len(row.candidate_ids if joint else row.documents),))
        wanted = False
        for example in row.examples():
            measured = self._sample.wants_next()
            wanted |= measured
            if self._tokenizer is not None and (measured or not self._surely_fits(self._tokenizer, example)):
                self._measure(self._tokenizer, place, example, measured)
        if wanted and self._tokenizer is not None and row.documents:
            for encoded in self._tokenizer.encode_texts(row.documents):
                self._cut_documents += encoded.truncated
                self._document_lengths.append(encoded.n_tokens)

    def result(self) -> DataLengths:
        """What was measured.

        Raises:
            DataError: Questions do not fit, or more answers than ``max_truncated_answers`` would be cut.
        """
        self._require_fit()
        question, answer, prompt = self._sample.spreads(3)
        (documents,) = self._counts.spreads(1)
        return DataLengths(
            rows=self.rows,
            examples=self._sample.n,
            left_out=self._left_out,
            without_positives=self._without_positives,
            every=self._sample.every,
            question=question,
            answer=answer,
            prompt=prompt,
            document=Spread.of(self._document_lengths),
            documents=documents,
            cut_answers=self._cut,
            cut_documents=self._cut_documents,
        )

    def _measure(self, tokenizer: ClaraTokenizer, place: str, example: Example, keep: bool) -> None:
        try:
            n_question = None  # some tasks ask nothing
            if example.question:
                questions = [example.question]
                joint = self._stage.stage == "joint"
                n_question = (tokenizer.encode_questions if joint else tokenizer.encode_texts)(questions)[0].n_tokens
            prompt = self._prompt(tokenizer, example)
        except TokenizationError as error:
            self._n_too_long += 1
            if len(self._too_long) < 3:
                self._too_long.append(f"{place}: {error.what} ({error.got}, {error.expected})")
            return
        if prompt.truncated:
            self._cut += 1
            self._first_cut = self._first_cut or place
        if keep:
            n_answer = len(prompt.answer_ids)
            self._sample.add((n_question, n_answer, len(prompt.prompt_ids) + n_answer))

    def _prompt(self, tokenizer: ClaraTokenizer, example: Example) -> TokenizedPrompt:
        if self._stage.stage == "base":
            return tokenizer.text_prompt_with_answer(
                example.task, example.question, example.documents, example.answer, cut_answer=True
            )
        k = self._n_slots(example)
        return tokenizer.prompt_with_answer(example.task, k, example.question, example.answer, cut_answer=True)

    def _n_slots(self, example: Example) -> int:
        return self._stage.top_k if self._stage.stage == "joint" else len(example.documents)

    def _surely_fits(self, tokenizer: ClaraTokenizer, example: Example) -> bool:
        config, base = tokenizer.config, self._stage.stage == "base"
        n_question = len(example.question.encode("utf-8"))
        if self._stage.stage == "joint" and n_question > config.doc_max_tokens:
            return False
        texts = example.documents if base else ()
        key = (example.task, 0 if base else self._n_slots(example))
        if key not in self._frames:
            try:
                frame = tokenizer.prompt_with_answer(example.task, key[1], "", "x")
            except TokenizationError:
                return False
            self._frames[key] = len(frame.prompt_ids) + len(frame.answer_ids)
        n_bytes = n_question + len(example.answer.encode("utf-8")) + sum(len(t.encode("utf-8")) + 1 for t in texts)
        return self._frames[key] + n_bytes + _SEAMS <= config.max_prompt_tokens

    def _require_candidates(self, place: str, row: ExampleRow) -> None:
        """Too few candidates are told before the first step, not at the unlucky one that draws K slots."""
        stage = self._stage
        if stage.candidates.source != "corpus" and len(row.candidate_ids) < stage.top_k:
            raise DataError(
                f"{place}: the question has fewer candidates than the stage reads documents",
                got=f"{len(row.candidate_ids)} candidates of {row.questions[0][:60]!r}",
                expected=f"at least {stage.top_k} (top_k)",
                hint="give it more candidates, lower top_k, or use candidates.source = corpus",
            )

    def _require_fit(self) -> None:
        stage, n = self._stage, self._sample.n
        if self._too_long:
            raise DataError(
                f"{self._n_too_long} of {n} examples of {stage.data} do not fit, however short their answers are",
                got="; ".join(self._too_long),
                hint="shorten or remove these rows, lower max_documents, or raise the model's max_prompt_tokens",
            )
        if n and self._cut / n > stage.max_truncated_answers:
            raise DataError(
                f"{self._cut} of {n} answers of {stage.data} do not fit into the prompt and would be cut",
                got=f"{self._cut / n:.2%}, the first in {self._first_cut}",
                expected=f"at most {stage.max_truncated_answers:.2%} (max_truncated_answers)",
                hint="shorten them, use fewer documents, raise the model's max_prompt_tokens, or let so many be cut",
            )
