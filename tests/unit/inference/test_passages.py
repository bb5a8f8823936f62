"""Splitting is tested on the tokenizers of several schemes: their tokens, white space and bytes differ."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from clara_dist.config import ClaraConfig
from clara_dist.errors import ConfigError
from clara_dist.inference.compressor import DocumentCompressor
from clara_dist.inference.passages import Passage, PassageSplitter
from clara_dist.model import ClaraTokenizer
from clara_dist.model.clara import ClaraModel
from tiny_models import build_tokenizer

SCHEMES = ["bytelevel", "metaspace-first", "metaspace-always", "metaspace-legacy", "unigram"]
SENTENCES = [f"Rain gauge {i} on the island is emptied at {i} in the morning." for i in range(40)]
TEXT = " ".join(SENTENCES)


def tokenizer_of(scheme: str, doc_max_tokens: int = 64, template: str = "{title}\n{text}") -> ClaraTokenizer:
    config = ClaraConfig(
        base_model="tiny", n_memory_tokens=1, doc_max_tokens=doc_max_tokens, document_template=template
    )
    return ClaraTokenizer(build_tokenizer(scheme), config)


def spans_of(text: str, passages: list[Passage]) -> list[tuple[int, int]]:
    """Where the passages stand: each is found behind the start of the one before."""
    spans, start = [], 0
    for passage in passages:
        at = text.index(passage.text, start)
        spans.append((at, at + len(passage.text)))
        start = at + 1
    return spans


def uncovered(text: str, spans: list[tuple[int, int]]) -> str:
    covered = np.zeros(len(text), bool)
    for start, end in spans:
        covered[start:end] = True
    return "".join(char for char, seen in zip(text, covered, strict=True) if not seen)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("overlap", [0, 8, 32])
def test_passages_cover_the_text_and_fit(scheme: str, overlap: int):
    tokenizer = tokenizer_of(scheme)
    (passages,) = PassageSplitter(tokenizer, overlap).split([("The island", TEXT)])
    spans = spans_of(TEXT, passages)
    assert len(passages) > 10
    assert uncovered(TEXT, spans).strip() == ""
    for passage in passages:
        whole = tokenizer.encode_text(tokenizer.document_text("The island", passage.text))
        assert (passage.title, passage.encoded) == ("The island", whole)
        assert not whole.truncated
        assert whole.n_tokens <= 64 + 3
    # Passages are as long as they may be: less than what fits is only given up to end at a sentence or word.
    room = 67 - tokenizer.encode_text(tokenizer.document_text("The island", "")).n_tokens
    assert all(len(tokenizer.token_ends(p.text)) >= 0.7 * room for p in passages[:-1])
    for (_, end), (start, _) in pairwise(spans):
        shared = TEXT[start:end]
        if overlap == 0:
            assert shared == ""
            continue
        n_shared = len(tokenizer.token_ends(shared))
        # A token at the edge of a cut text counts differently, and where the passage had to be a few tokens shorter its
        # half is smaller; a word more than asked is allowed.
        asked = min(overlap, room // 2)
        assert 0.9 * asked - 1 <= n_shared <= asked + room // 8 + 2
        assert TEXT[start - 1].isspace()


def test_passages_end_at_sentences_where_one_ends_near():
    text = "It rains. " * 60
    (passages,) = PassageSplitter(tokenizer_of("metaspace-first"), 8).split([("", text)])
    assert len(passages) > 3
    assert all(passage.text.endswith("rains.") for passage in passages)
    assert all(passage.text.startswith(("It", "rains")) for passage in passages)


def test_what_fits_stays_as_it_is():
    documents = [("T", "  It rains. "), ("", "Ada.")]
    tokenizer = tokenizer_of("metaspace-first")
    whole = [tokenizer.encode_text(tokenizer.document_text(*document)) for document in documents]
    assert PassageSplitter(tokenizer, 8).split(documents) == [
        [Passage(*document, encoded)] for document, encoded in zip(documents, whole, strict=True)
    ]


@pytest.mark.parametrize("scheme", ["bytelevel", "metaspace-first"])
@pytest.mark.parametrize("character", ["e\u0301\u0323", "👩‍👩‍👧", "👍🏽", "🇫🇷", "日"])
def test_no_cut_inside_a_character(scheme: str, character: str):
    """Texts without any border: one endless word, of characters that are several code points and many tokens."""
    text = character * 120
    (passages,) = PassageSplitter(tokenizer_of(scheme), 10).split([("", text)])
    assert len(passages) > 1
    for passage in passages:
        assert passage.text == character * (len(passage.text) // len(character))
    assert sum(len(passage.text) for passage in passages) >= len(text)
    assert not any(passage.encoded.truncated for passage in passages)


def test_white_space_makes_no_passage():
    text = "Ada." + "\n" * 500 + "Merrow." + " " * 500
    (passages,) = PassageSplitter(tokenizer_of("bytelevel"), 8).split([("", text)])
    assert [passage.text for passage in passages if passage.text not in ("Ada.", "Merrow.")] == []
    assert all(passage.text.strip() for passage in passages)


def test_special_tokens_in_a_text_are_text():
    text = " ".join(f"</s> <MEM0> it rains {i}." for i in range(30))
    tokenizer = tokenizer_of("unigram")
    (passages,) = PassageSplitter(tokenizer, 8).split([("", text)])
    assert uncovered(text, spans_of(text, passages)).strip() == ""
    assert not any(passage.encoded.truncated for passage in passages)


def test_a_long_title_leaves_half_of_the_room_to_the_text():
    tokenizer = tokenizer_of("metaspace-first")
    title = " ".join(SENTENCES[:6])
    (passages,) = PassageSplitter(tokenizer, 8).split([(title, TEXT)])
    assert len({passage.title for passage in passages}) == 1
    assert title.startswith(passages[0].title)
    assert 16 <= len(tokenizer.token_ends(passages[0].title)) <= 32
    assert uncovered(TEXT, spans_of(TEXT, passages)).strip() == ""
    assert not any(passage.encoded.truncated for passage in passages)


def test_a_character_that_is_longer_than_the_model_reads_is_told():
    tokenizer = tokenizer_of("bytelevel", doc_max_tokens=3, template="{text}")
    (passages,) = PassageSplitter(tokenizer, 1).split([("", "a👍 Ada")])
    assert [passage.text for passage in passages if passage.encoded.truncated] == ["👍"]
    assert uncovered("a👍 Ada", spans_of("a👍 Ada", passages)).strip() == ""


def test_a_template_without_room():
    with pytest.raises(ConfigError, match="leaves no room for a text"):
        PassageSplitter(tokenizer_of("bytelevel", 8, "A template of more than eight tokens: {text}"), 2)


def test_the_memory_of_a_passage_is_that_of_its_text(tiny_clara_dir: Path):
    clara = ClaraModel.from_pretrained(tiny_clara_dir)
    (passages,) = PassageSplitter(clara.tokenizer, 6).split([("Island", TEXT)])
    compressor = DocumentCompressor(clara)
    memory_SMD = np.empty((len(passages), clara.n_memory_tokens, clara.hidden_size), np.float16)
    compressor.encode([passage.encoded for passage in passages], memory_SMD)
    alone = [compressor.compress([(passage.title, passage.text)]).memory_SMD[0] for passage in passages]
    np.testing.assert_allclose(memory_SMD, np.stack(alone), rtol=2**-10, atol=1e-5)
