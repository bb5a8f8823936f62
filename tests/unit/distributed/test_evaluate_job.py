"""The evaluation task without a cluster: which reasoner stands behind which row, and whose store it takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from clara_dist.config.evaluate import EvaluateConfig
from clara_dist.distributed.evaluate_job import FixedQueries, absolute_paths, evaluate_model
from clara_dist.errors import DataError, FingerprintMismatchError
from clara_dist.inference.compressor import DocumentCompressor
from clara_dist.model.clara import ClaraModel
from clara_dist.store import Fingerprint, StoreSchema, commit, write_shard

TEXTS = [
    "The lighthouse at Cape Merrow",
    "Rain gauges on the island",
    "Ada Tolliver, an engineer.",
    "was built in 1871",
    "emptied at nine",
    "in the morning",
]


def build(path: Path, model: Path, fingerprint: Fingerprint | None = None) -> None:
    """The store that the model's compressor makes of TEXTS."""
    clara = ClaraModel.from_pretrained(model)
    fingerprint = fingerprint or Fingerprint(clara.fingerprint_fields())
    compressed = DocumentCompressor(clara).compress([("", text) for text in TEXTS])
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
    commit(path, schema, fingerprint, [write_shard(path, table, "all")], parent=None, writer_info={})


@pytest.fixture
def config(tiny_clara_dir: Path, tmp_path: Path) -> EvaluateConfig:
    """Every document is asked for by its own text."""
    build(tmp_path / "store", tiny_clara_dir)
    questions = tmp_path / "questions.jsonl"
    rows = [
        {"question_id": f"q{i}", "question": text, "answer": "x", "positives": [f"d{i}"]}
        for i, text in enumerate(TEXTS)
    ]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return EvaluateConfig(
        model=str(tiny_clara_dir), store=str(tmp_path / "store"), questions=str(questions), max_tokens=2, recall_at=(1,)
    )


def test_the_untrained_reasoner_is_the_compressor(config: EvaluateConfig) -> None:
    report = evaluate_model(config)
    assert [row.method for row in report.methods] == [
        "BM25",
        "untrained reasoner",
        "reasoner",
        "oracle",
        "closed book",
    ]
    # A question that is a document's text, read by the compressor, has that document's memory: cosine 1.
    untrained = report["untrained reasoner"].corpus.recall
    trained = report["reasoner"].corpus.recall
    assert untrained is not None
    assert trained is not None
    assert untrained[1] == 1.0
    # The model's own reasoner has other random weights, so it cannot find them all.
    assert trained[1] < 1.0


def test_another_models_store_is_refused(config: EvaluateConfig, tiny_clara_dir: Path, tmp_path: Path) -> None:
    fields = ClaraModel.from_pretrained(tiny_clara_dir).fingerprint_fields() | {"compressor": "another"}
    build(tmp_path / "other", tiny_clara_dir, Fingerprint(fields))
    with pytest.raises(FingerprintMismatchError, match="compressor"):
        evaluate_model(config.model_copy(update={"store": str(tmp_path / "other")}))


def test_missing_questions_are_an_error(config: EvaluateConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent"):
        evaluate_model(config.model_copy(update={"questions": str(tmp_path / "absent.jsonl")}))


def test_fixed_queries_follow_the_questions_not_their_order() -> None:
    query_BX = torch.arange(6.0).view(3, 2).numpy()
    queries = FixedQueries(["a", "b", "c"], query_BX)
    np.testing.assert_array_equal(queries.query(["c", "a"]), [[4.0, 5.0], [0.0, 1.0]])


def test_the_task_finds_its_files_wherever_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = absolute_paths(EvaluateConfig(model="m", store="s3://bucket/s", questions="q.jsonl", base_model="hub/base"))
    assert (found.model, found.questions) == (str(tmp_path / "m"), str(tmp_path / "q.jsonl"))
    assert (found.store, found.base_model) == ("s3://bucket/s", "hub/base")
