"""Joint training where the store holds passages of the documents that the examples name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clara_dist.config.training import StageConfig
from clara_dist.data.examples import Example
from clara_dist.errors import DataError
from clara_dist.model.batch import TextBatch
from clara_dist.model.clara import ClaraModel
from clara_dist.retrieval.bank import MemoryBank
from clara_dist.store import MemoryStore, StoreSchema, commit
from clara_dist.training.batches import StepPlan
from clara_dist.training.collate import JointCollator
from clara_dist.training.steps import JointStep, document_recall
from tiny_stores import FINGERPRINT, random_memory, write_rows

EXAMPLES = [
    Example("Who built it?", "Ada", candidate_ids=("b", "a"), positives=(0,)),
    Example("When?", "1871", candidate_ids=("c", "a", "b"), positives=(0, 2)),
]


@pytest.fixture
def bank(tmp_path: Path) -> MemoryBank:
    """Row 0 is document a, rows 1 to 3 are b, rows 4 and 5 are c."""
    memory = random_memory(6, 3, 32)
    shard = write_rows(
        tmp_path, "s", memory, doc_ids=["a", "b#1", "b#2", "b#3", "c#1", "c#2"], parent_ids=["a", *"bbbcc"]
    )
    commit(tmp_path, StoreSchema(3, 32), FINGERPRINT, [shard])
    return MemoryBank(MemoryStore.open(tmp_path))


def test_candidates_are_all_passages_and_a_hit_is_any(tiny_clara_dir: Path, bank: MemoryBank):
    clara = ClaraModel.from_pretrained(tiny_clara_dir)
    batch = JointCollator(clara.tokenizer, bank)(EXAMPLES, StepPlan(n_slots=2, from_corpus=False))
    assert batch.candidates_BN is not None
    assert batch.candidates_BN.tolist() == [[1, 2, 3, 0, -1, -1], [4, 5, 0, 1, 2, 3]]
    assert batch.positives_B == (((1, 2, 3),), ((4, 5), (1, 2, 3)))
    stage = StageConfig.model_validate({"stage": "joint", "data": "x", "steps": 1, "store": "x", "top_k": 2})
    step = JointStep(clara, bank, stage)
    output = step(batch, batch.totals)
    best = []
    for example, rows in zip(EXAMPLES, ([1, 2, 3, 0], [4, 5, 0, 1, 2, 3]), strict=True):
        encoded = clara.tokenizer.encode_text(example.question)
        query = clara.encode("query_reasoner", TextBatch.from_ids([encoded.ids], 0)).memory_BMD.flatten()
        scores = torch.cosine_similarity(query[None], bank.gather(torch.tensor(rows)).flatten(1))
        best.append({rows[i] for i in scores.topk(2).indices.tolist()})
    assert output.recalls == [
        float(bool(best[0] & {1, 2, 3})),
        (bool(best[1] & {4, 5}) + bool(best[1] & {1, 2, 3})) / 2,
    ]


def test_recall_counts_documents_not_passages():
    positives = (((1, 2, 3),), ((4, 5), (1, 2, 3)), (), ((0,),))
    rows = torch.tensor([[2, 3], [5, 4], [0, 1], [1, 2]])
    assert document_recall(rows, positives) == [1.0, 0.5, 0.0]


def test_a_document_that_the_store_lacks(tiny_clara_dir: Path, bank: MemoryBank):
    clara = ClaraModel.from_pretrained(tiny_clara_dir)
    collate = JointCollator(clara.tokenizer, bank)
    with pytest.raises(DataError, match="1 of 2, first: 'nowhere'"):
        collate([Example("Who?", "Ada", candidate_ids=("b", "nowhere"))], StepPlan(1, from_corpus=False))
