"""Passages with questions (CLaRa's first-stage rows) as the files of a run from scratch, some passages held out.

A fifth of the passages, drawn by seed, are held out: their questions and answers are in ``questions.jsonl`` alone.
Their text is in the corpus that is searched, and training reads it as text, with its own words, never its questions.
``known-words.jsonl`` is without it, to compare with.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from clara_dist.data.documents import content_id
from clara_dist.data.examples import iter_example_rows
from clara_dist.errors import DataError

Row = dict[str, Any]
_WORD = re.compile(r"\w+(?:[-'\u2019.,]\w+)*")
_HELD_OUT_SHARE = 0.2
_N_CANDIDATES = 20
# A word of so many training questions is how one asks, not what is asked about.
_FRAME_SHARE = 0.01
_REAL_SHARE = 0.2


@dataclass(frozen=True)
class Passage:
    """A document with its (question, answer) pairs."""

    text: str
    pairs: tuple[tuple[str, str], ...]
    held_out: bool = False


@dataclass(frozen=True)
class RealTextSizes:
    """Of the model that is trained from scratch, and of the files that are drawn: so many rows each."""

    vocabulary: int = 6000
    hidden_size: int = 256
    n_layers: int = 1
    n_rows: int = 30_000


def write_real_text(source: str, folder: Path, seed: int, sizes: RealTextSizes = RealTextSizes()) -> dict[str, int]:
    """Write all files; returns how many passages and questions there are, trained and held out.

    Raises:
        DataError: The rows are not of that layout, or too few to hold some out.
    """
    passages = read_passages(source, seed)
    known = [passage for passage in passages if not passage.held_out]
    asked = [(passage, *pair) for passage in known for pair in passage.pairs]
    words = PassageWords(passages, [question for _, question, _ in asked])
    draw = random.Random(f"rows {seed}")
    questions = list(_questions(passages, random.Random(f"questions {seed}")))
    files: dict[str, list[Row]] = {
        "corpus": [_row("paraphrase", passage.text, "", passage.text) for passage in passages],
        "base": [_reading(words, passages, asked, draw, base=True) for _ in range(sizes.n_rows)],
        "compression": [_reading(words, passages, asked, draw) for _ in range(sizes.n_rows)],
        "words": [_asking(words, passages, asked, draw) for _ in range(sizes.n_rows)],
        "known-words": [_asking(words, known, asked, draw) for _ in range(sizes.n_rows)],
        "joint": [_joint(*one) for one in asked],
        "questions": questions,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
    write_base(folder / "base_init", [*(p.text for p in passages), *(question for _, question, _ in asked)], sizes)
    n_held_out = len(passages) - len(known)
    return {
        "passages": len(passages),
        "held_out_passages": n_held_out,
        "training_questions": len(asked),
        "held_out_questions": len(questions),
    }


def read_passages(source: str, seed: int) -> list[Passage]:
    """The passages of ``{data_type: qa, question[], answers[], docs: [text]}``, each once, in the file's order.

    Raises:
        DataError: See `write_real_text`.
    """
    pairs: dict[str, list[tuple[str, str]]] = {}
    for place, row in iter_example_rows(source, "instruct"):
        if row is None or len(row.documents) != 1:
            raise DataError(f"{place} has not one passage with its questions")
        pairs.setdefault(row.documents[0], []).extend(zip(row.questions, row.answers, strict=True))
    if len(pairs) < 5:
        raise DataError(f"{source} has too few passages to hold some out", got=len(pairs), expected="at least 5")
    order = sorted(pairs, key=content_id)
    held_out = set(random.Random(f"held out {seed}").sample(order, round(_HELD_OUT_SHARE * len(order))))
    return [Passage(text, tuple(found), text in held_out) for text, found in pairs.items()]


class PassageWords:
    """Draws words by how rare they are in the corpus, and asks for them as real questions are worded.

    Args:
        passages: The corpus.
        questions: Real ones that may be learnt from.
    """

    def __init__(self, passages: Sequence[Passage], questions: Sequence[str]) -> None:
        self._words = {passage.text: _WORD.findall(passage.text) or [passage.text] for passage in passages}
        n_with = Counter(word.lower() for words in self._words.values() for word in {w.lower(): w for w in words})
        self._weights = {
            text: [math.log(1 + len(passages) / n_with[word.lower()]) ** 2 for word in words]
            for text, words in self._words.items()
        }
        self._questions = [_WORD.findall(question) for question in questions]
        n_asked = Counter(word.lower() for words in self._questions for word in {w.lower(): w for w in words})
        self._frame = {word for word, n in n_asked.items() if n > _FRAME_SHARE * len(questions)}

    def rare(self, passage: Passage, n: int, rng: random.Random) -> str:
        """``n`` words of a passage, the rarer the likelier."""
        return " ".join(rng.choices(self._words[passage.text], self._weights[passage.text], k=n))

    def question(self, passage: Passage, rng: random.Random) -> tuple[str, str]:
        """A training question whose particular words are replaced by some of this passage; and those alone."""
        asked, particular, in_frame = [], [], True
        for word in [*rng.choice(self._questions), None]:
            if word is not None and word.lower() in self._frame:
                asked.append(word)
                in_frame = True
            elif in_frame:
                particular.append(self._stretch(passage, rng))
                asked.append(particular[-1])
                in_frame = False
        return " ".join(asked) + "?", " ".join(particular)

    def _stretch(self, passage: Passage, rng: random.Random) -> str:
        words = self._words[passage.text]
        start = rng.choices(range(len(words)), self._weights[passage.text])[0]
        return " ".join(words[start : start + rng.choice((1, 2, 3))])


def _reading(
    words: PassageWords,
    passages: Sequence[Passage],
    asked: Sequence[tuple[Passage, str, str]],
    rng: random.Random,
    *,
    base: bool = False,
) -> Row:
    """A passage or a made-up question and its rare words, or a real question; the base also reads the text itself."""
    task = rng.random()
    if task < 0.3:
        passage, question, answer = rng.choice(asked)
        return _row("answer", passage.text, question, answer)
    passage = rng.choice(passages)
    if task < 0.7:
        row = _row("paraphrase", passage.text, "", words.rare(passage, 6, rng))
        # Spaces at its ends would become part of tokens that are not the passage's alone.
        return {**row, "docs": [passage.text.strip()], "supervise_documents": True} if base else row
    made_up, particular = words.question(passage, rng)
    return _row("paraphrase", made_up, "", particular)


def _asking(
    words: PassageWords, passages: Sequence[Passage], asked: Sequence[tuple[Passage, str, str]], rng: random.Random
) -> Row:
    if rng.random() < _REAL_SHARE:
        return _joint(*rng.choice(asked))
    passage = rng.choice(passages)
    return _joint(passage, words.question(passage, rng)[0], words.rare(passage, 1, rng))


def _row(data_type: str, text: str, question: str, answer: str) -> Row:
    questions = [question] if question else []
    return {"data_type": data_type, "question": questions, "answers": [answer], "docs": [text]}


def _joint(passage: Passage, question: str, answer: str) -> Row:
    return {"question": question, "answer": answer, "docs": [passage.text], "pos_index": [0]}


def _questions(passages: Sequence[Passage], rng: random.Random) -> Iterator[Row]:
    """The held-out passages' questions, with candidates drawn from all passages."""
    ids = [content_id(passage.text) for passage in passages]
    for passage in passages:
        own = content_id(passage.text)
        for number, (question, answer) in enumerate(passage.pairs if passage.held_out else ()):
            others = rng.sample([doc_id for doc_id in ids if doc_id != own], min(_N_CANDIDATES, len(ids)) - 1)
            fields = {"question_id": f"{own}-{number}", "question": question, "answer": answer}
            yield {**fields, "positives": [own], "candidates": sorted([own, *others])}


def write_base(folder: Path, texts: Sequence[str], sizes: RealTextSizes) -> None:
    """An untrained Llama's ``config.json``, and a lower-casing byte-pair tokenizer of the texts."""
    bos, eos, pad = specials = ["<s>", "</s>", "<pad>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=sizes.vocabulary,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad)
    fast.save_pretrained(folder)
    LlamaConfig(
        vocab_size=len(fast),
        hidden_size=sizes.hidden_size,
        intermediate_size=2 * sizes.hidden_size,
        num_hidden_layers=sizes.n_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    ).save_pretrained(folder)
