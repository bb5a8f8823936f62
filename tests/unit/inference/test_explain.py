"""Words that query vectors decode to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clara_dist import Clara
from clara_dist.config import ClaraConfig, LoraSettings
from clara_dist.inference.answering import Source
from clara_dist.inference.explain import _Spelling, explain, words_of
from tiny_models import build_base, build_tokenizer

SOURCE = Source("d0", "d0", "Lighthouses", 0.5, "The lighthouse was built by Ada Tolliver.")


@pytest.fixture
def clara(tiny_clara_dir: Path) -> Clara:
    return Clara.from_pretrained(tiny_clara_dir)


def test_vectors_are_read_by_the_bases_own_head(clara: Clara) -> None:
    query_BMD = clara.reason(["Who built it?", "rain"])
    found = explain(clara, ["Who built it?", "rain"], query_BMD, [SOURCE, SOURCE], n_words=4)
    head = clara.base.get_output_embeddings().weight
    for query_MD, explanation in zip(query_BMD, found, strict=True):
        assert len(explanation.vectors) == 3
        for query_D, words in zip(query_MD, explanation.vectors, strict=True):
            logits_V = head @ query_D
            best = logits_V.topk(4)
            assert [word.token_id for word in words] == best.indices.tolist()
            assert [word.logit for word in words] == pytest.approx(best.values.tolist(), abs=1e-4)
            probabilities = logits_V.softmax(-1)[best.indices].tolist()
            assert [word.probability for word in words] == pytest.approx(probabilities, abs=1e-5)
            assert words[0].probability > words[3].probability


def new_model(scheme: str, path: Path) -> Clara:
    hf = build_tokenizer(scheme)
    build_base("mistral", len(hf)).save_pretrained(path)
    hf.save_pretrained(path)
    config = ClaraConfig(base_model=str(path), n_memory_tokens=4, doc_max_tokens=8, lora=LoraSettings(r=1))
    return Clara.from_base(config)


def test_words_of_the_document_that_the_question_lacks_are_marked(tmp_path: Path) -> None:
    """Vectors made to say certain tokens: rows of the head, long enough to win."""
    clara = new_model("bytelevel", tmp_path)
    head = clara.base.get_output_embeddings().weight.detach()
    vocabulary = clara.tokenizer.hf.get_vocab()
    tokens = {token: vocabulary[token] for token in ("Ġthe", "Ġbuilt", "Ġlighthouse", "was")}
    query_1MD = torch.stack([100 * head[i] / head[i].norm() for i in tokens.values()])[None]
    [explanation] = explain(clara, ["Who BUILT the house?"], query_1MD, [SOURCE], n_words=1)
    first = {words[0].text: words[0] for words in explanation.vectors}
    assert [word.token_id for word in first.values()] == list(tokens.values())
    assert {text: (w.is_word, w.in_document, w.in_question) for text, w in first.items()} == {
        "the": (True, True, True),
        "built": (True, True, True),
        "lighthouse": (True, True, False),
        "was": (False, False, False),
    }
    assert explanation.added_words == ("lighthouse",)
    shown = str(explanation).splitlines()
    assert shown[0] == "Who BUILT the house?  ->  d0 (0.500)"
    assert shown[3] == f"    2  [lighthouse] {first['lighthouse'].probability:.2f}"
    assert shown[4].startswith("    3  -was ")


@pytest.mark.parametrize("scheme", ["bytelevel", "metaspace-first", "metaspace-always", "metaspace-legacy", "unigram"])
def test_every_tokenizer_says_where_words_begin(scheme: str, tmp_path: Path) -> None:
    tokenizer = new_model(scheme, tmp_path).tokenizer
    spelling = _Spelling(tokenizer)
    begins = "Ġ" if scheme == "bytelevel" else "▁"
    checked = 0
    for token, token_id in tokenizer.hf.get_vocab().items():
        text = token.removeprefix(begins)
        if text.isascii() and text.isalnum():
            assert spelling(token_id) == (text, token.startswith(begins)), token
            checked += 1
    assert checked > 50


def test_words_are_compared_without_case_and_signs() -> None:
    assert words_of("Ada's LIGHTHOUSE, 1871 -- straße") == {"ada", "s", "lighthouse", "1871", "strasse"}


def test_explain_chooses_the_nearest_document(clara: Clara, tmp_path: Path) -> None:
    store = clara.build_store(["The lighthouse at Cape Merrow", "Rain gauges on the island"], tmp_path / "store")
    explanation = clara.explain("rain", store, n_words=3)
    assert explanation.source == clara.retrieve(["rain"], store, 1)[0][0]
    assert [len(words) for words in explanation.vectors] == [3, 3, 3]
