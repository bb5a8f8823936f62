"""The real parts together: a store on disk, the exact searcher, the reasoner and the generator of a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clara_dist.data.questions import EvalQuestion
from clara_dist.evaluation import Bm25Ranker, LatentRanker, evaluate
from clara_dist.inference.compressor import DocumentCompressor
from clara_dist.inference.generator import Generator
from clara_dist.inference.reasoner import Reasoner
from clara_dist.model import ClaraModel
from clara_dist.retrieval import ExactSearcher
from clara_dist.store.reader import MemoryStore
from clara_dist.store.schema import StoreSchema
from clara_dist.store.writer import commit, write_shard

TEXTS = [
    "The lighthouse was built in 1871",
    "rain gauges on the roof",
    "Cape Merrow",
    "The town has two bridges",
    "The ferry leaves at six",
    "Granite from the quarry",
]


@pytest.fixture
def store(tiny_clara_dir: Path, tmp_path: Path) -> MemoryStore:
    compressor = DocumentCompressor(ClaraModel.from_pretrained(tiny_clara_dir))
    compressed = compressor.compress([("", text) for text in TEXTS])
    schema = StoreSchema(*compressed.memory_SMD.shape[1:])
    table = schema.to_table(
        doc_ids=[f"d{i}" for i in range(len(TEXTS))],
        titles=[""] * len(TEXTS),
        texts=TEXTS,
        metadata=[{}] * len(TEXTS),
        memory_SMD=compressed.memory_SMD,
        n_tokens=compressed.n_tokens_S,
        truncated=compressed.truncated_S,
    )
    shards = [write_shard(tmp_path / "store", table[:4], "a"), write_shard(tmp_path / "store", table[4:], "b")]
    commit(tmp_path / "store", schema, compressor.fingerprint, shards)
    return MemoryStore.open(tmp_path / "store")


def test_a_model_is_evaluated_on_its_store(tiny_clara_dir: Path, store: MemoryStore) -> None:
    clara = ClaraModel.from_pretrained(tiny_clara_dir)
    everything = tuple(f"d{i}" for i in range(len(TEXTS)))
    asked = ["When was the lighthouse built?", "What is on the roof?", "When does the ferry leave?"]
    generator = Generator(clara)
    # What the model says after reading d4 is declared right for question 2, and only for it.
    said = generator.generate(asked[2:], [torch.from_numpy(store.take_memory([4]))], max_tokens=8)[0].text
    questions = [
        EvalQuestion("q0", asked[0], ("1871",), ("d0",), everything),
        EvalQuestion("q1", asked[1], ("rain gauges",), ("d1",), everything),
        EvalQuestion("q2", asked[2], (said,), ("d4",), everything),
    ]
    latent = LatentRanker(Reasoner(clara), store, ExactSearcher(store))
    rankers = {"BM25": Bm25Ranker(store, clara.tokenizer.document_text), "untrained": latent}
    report = evaluate(questions, store, rankers, generator, top_k=1, max_tokens=8)

    # With the whole corpus as candidates both columns are the same ranking, found by two different roads.
    for given, searched in zip(latent.among_candidates(questions, 6), latent.in_corpus(questions, 6), strict=True):
        assert given.doc_ids == searched.doc_ids
        assert given.scores == pytest.approx(searched.scores, abs=1e-6)
    assert report["untrained"].candidates == report["untrained"].corpus
    # Each question shares a word with its own document only: lighthouse/built, roof, ferry.
    assert report["BM25"].corpus.recall == {1: 1.0, 3: 1.0, 5: 1.0}
    assert report["oracle"].corpus.answers.exact_match == pytest.approx(1 / 3)
    assert report["BM25"].corpus.answers == report["oracle"].corpus.answers
