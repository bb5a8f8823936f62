from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from clara_dist.config.index import IndexConfig
from clara_dist.errors import FingerprintMismatchError, RetrievalError
from clara_dist.inference.answering import LocalPipeline
from clara_dist.inference.compressor import DocumentCompressor
from clara_dist.inference.generator import Generator
from clara_dist.inference.reasoner import Reasoner
from clara_dist.model.clara import ClaraModel
from clara_dist.retrieval.index import IndexedSearcher
from clara_dist.retrieval.index_build import build_index
from clara_dist.retrieval.search import ExactSearcher
from clara_dist.store import MemoryStore, StoreSchema, commit, write_shard

QUESTIONS = ["Who built the lighthouse?", "rain gauges"]


@pytest.fixture(scope="module")
def store(
    tiny_clara_dir: Path, documents: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> MemoryStore:
    compressor = DocumentCompressor(ClaraModel.from_pretrained(tiny_clara_dir))
    compressed = compressor.compress(documents)
    schema = StoreSchema(3, compressor.clara.hidden_size)
    table = schema.to_table(
        doc_ids=[f"d{i}" for i in range(len(documents))],
        titles=[title for title, _ in documents],
        texts=[text for _, text in documents],
        metadata=[{}] * len(documents),
        memory_SMD=compressed.memory_SMD,
        n_tokens=compressed.n_tokens_S,
        truncated=compressed.truncated_S,
    )
    url = str(tmp_path_factory.mktemp("answering") / "store")
    commit(url, schema, compressor.fingerprint, [write_shard(url, table, "all")])
    return MemoryStore.open(url)


def test_answers_come_from_the_nearest_documents(
    clara: ClaraModel, store: MemoryStore, documents: list[tuple[str, str]]
) -> None:
    answers = LocalPipeline(clara, store).answer(QUESTIONS, top_k=3, max_tokens=6)
    memory_SX = torch.from_numpy(store.take_memory(np.arange(len(documents)))).float().flatten(1)
    for question, answer in zip(QUESTIONS, answers, strict=True):
        query_1X = torch.from_numpy(Reasoner(clara).query([question]))
        scores_S = torch.cosine_similarity(query_1X, memory_SX)
        best_K = scores_S.argsort(descending=True, stable=True)[:3].tolist()
        assert [source.doc_id for source in answer.sources] == [f"d{row}" for row in best_K]
        assert [(source.title, source.text) for source in answer.sources] == [documents[row] for row in best_K]
        np.testing.assert_allclose([s.score for s in answer.sources], scores_S[best_K].numpy(), atol=1e-5)
        memory_1KMD = torch.from_numpy(store.take_memory(np.array([best_K])))
        assert answer.text == Generator(clara).generate([question], memory_1KMD, max_tokens=6)[0].text
        assert answer.timings_s.keys() == {"reason", "search", "generate"}
        assert all(seconds > 0 for seconds in answer.timings_s.values())


def test_an_index_is_used_where_there_is_one(clara: ClaraModel, store: MemoryStore) -> None:
    exact = LocalPipeline(clara, store).retrieve(QUESTIONS, 3)
    with pytest.raises(RetrievalError, match="no complete index"):
        LocalPipeline(clara, store).retrieve(QUESTIONS, 3, index="required")
    build_index(IndexConfig(store=store.url, k=5, min_recall=0), progress=lambda _: None)
    pipeline = LocalPipeline(clara, MemoryStore.open(store.url))
    assert pipeline.retrieve(QUESTIONS, 3) == pipeline.retrieve(QUESTIONS, 3, index="required") == exact
    assert [type(pipeline._searchers[index]) for index in ("auto", "required")] == [IndexedSearcher] * 2
    assert pipeline.retrieve(QUESTIONS, 3, index="none") == exact
    assert isinstance(pipeline._searchers["none"], ExactSearcher)


def test_other_models_store_is_refused(clara: ClaraModel, store: MemoryStore) -> None:
    clara.memory_rows.data += 1
    with pytest.raises(FingerprintMismatchError, match="memory_embeddings"):
        LocalPipeline(clara, store)


def test_more_sources_than_documents(clara: ClaraModel, store: MemoryStore) -> None:
    with pytest.raises(RetrievalError, match="41"):
        LocalPipeline(clara, store).answer(QUESTIONS, top_k=41)


def test_no_questions(clara: ClaraModel, store: MemoryStore) -> None:
    assert LocalPipeline(clara, store).answer([]) == []
