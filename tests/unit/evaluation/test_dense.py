"""Other people's text models as retrieval methods: rankings by hand, and a real model of sentence-transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast

from clara_dist.errors import ConfigError
from clara_dist.evaluation import Bm25Ranker
from clara_dist.evaluation.dense import DenseRanker, Reranker, load_cross_encoder, load_embedder

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def letters(texts):
    """How often each letter occurs: an embedding that can be computed by eye."""
    return np.array([[text.lower().count(letter) for letter in LETTERS] for text in texts], np.float32)


def text_of(title, text):
    return text


def cosine(a, b):
    a, b = letters([a])[0], letters([b])[0]
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_cosines_of_embeddings(store, questions):
    ranker = DenseRanker(store, letters, text_of)
    texts = {d.doc_id: d.text for d in store.documents(np.arange(5))}
    for question, ranking in zip(questions, ranker.in_corpus(questions, 5), strict=True):
        expected = {doc_id: cosine(question.question, text) for doc_id, text in texts.items()}
        assert list(ranking.doc_ids) == sorted(expected, key=lambda doc_id: -expected[doc_id])
        assert ranking.scores == pytest.approx([expected[doc_id] for doc_id in ranking.doc_ids], abs=1e-6)
    for question, ranking in zip(questions, ranker.among_candidates(questions, 2), strict=True):
        best = sorted(question.candidates, key=lambda doc_id: -cosine(question.question, texts[doc_id]))
        assert list(ranking.doc_ids) == best[:2]


def test_a_reranker_reads_what_another_method_found(store, questions):
    asked = []

    def longest(pairs):
        asked.extend(pairs)
        return np.array([len(text) for _, text in pairs])

    ranker = Reranker(store, Bm25Ranker(store, text_of), longest, text_of, n=3)
    # BM25 finds oslo, fjord, lima for question 1; the longest text of them is that of lima (22), then oslo, fjord.
    (ranking,) = ranker.in_corpus(questions[:1], 2)
    assert ranking.doc_ids == ("lima", "oslo")
    assert ranking.scores == (22.0, 20.0)
    assert len(asked) == 3
    (given,) = ranker.among_candidates(questions[:1], 3)
    assert sorted(given.doc_ids[:2]) == ["oslo", "rome"]  # of the same length
    assert given.doc_ids[2] == "fjord"
    assert len(asked) == 6


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of two layers, as an embedder and as a cross-encoder."""
    path = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *[f"##{letter}" for letter in LETTERS]]
    (path / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = BertTokenizerFast(str(path / "vocab.txt"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        num_labels=1,
    )
    BertModel(config).save_pretrained(path / "embedder")
    BertForSequenceClassification(config).save_pretrained(path / "reranker")
    for name in ("embedder", "reranker"):
        tokenizer.save_pretrained(path / name)
    return path


def test_real_models(bert: Path, store, questions) -> None:
    embed = load_embedder(str(bert / "embedder"), "cpu")
    vectors = embed(["Oslo lies by a fjord", "Bern has bears"])
    assert vectors.shape == (2, 16)
    model = BertModel.from_pretrained(bert / "embedder").eval()
    tokenizer = BertTokenizerFast.from_pretrained(bert / "embedder")
    with torch.inference_mode():  # sentence-transformers' default head: the mean over tokens
        states = model(**tokenizer("Bern has bears", return_tensors="pt")).last_hidden_state[0]
    np.testing.assert_allclose(vectors[1], states.mean(0).numpy(), atol=1e-6)
    assert len(DenseRanker(store, embed, text_of).in_corpus(questions, 3)[0].doc_ids) == 3

    score = load_cross_encoder(str(bert / "reranker"), "cpu")
    scores = score([("Where?", "Oslo lies by a fjord"), ("Where?", "Bern has bears")])
    assert scores.shape == (2,)
    assert scores[0] != scores[1]


def test_what_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_embedder(str(tmp_path / "nowhere"), "cpu")
