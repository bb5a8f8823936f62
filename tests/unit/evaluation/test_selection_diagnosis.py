"""The diagnosis of a real tiny model on its store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from clara_dist import cli
from clara_dist.data.examples import Example
from clara_dist.errors import DataError
from clara_dist.evaluation.selection_diagnosis import diagnose_selection
from clara_dist.inference.answer_loss import AnswerLoss
from clara_dist.inference.building import build_store
from clara_dist.inference.compressor import DocumentCompressor
from clara_dist.inference.reasoner import Reasoner
from clara_dist.model import ClaraModel
from clara_dist.retrieval.bank import MemoryBank

TEXTS = ["The lighthouse was built in 1871", "rain gauges on the roof", "Cape Merrow", "The town has two bridges"]
QUESTIONS = ["When was the lighthouse built?", "What is on the roof?"]
ANSWERS = ["in 1871", "rain gauges"]


@pytest.fixture
def bank(tiny_clara_dir: Path, tmp_path: Path) -> MemoryBank:
    compressor = DocumentCompressor(ClaraModel.from_pretrained(tiny_clara_dir))
    documents = [{"doc_id": f"d{i}", "text": text} for i, text in enumerate(TEXTS)]
    return MemoryBank(build_store(compressor, documents, tmp_path / "store", metadata_columns={}, overlap_tokens=0))


@pytest.fixture
def examples() -> list[Example]:
    return [
        Example(QUESTIONS[0], ANSWERS[0], candidate_ids=("d0", "d1", "d2", "d3"), positives=(0,)),
        Example(QUESTIONS[1], ANSWERS[1], candidate_ids=("d2", "d1", "d0"), positives=(1,)),
    ]


def test_the_answer_loss_is_each_questions_own_mean(tiny_clara_dir: Path, bank: MemoryBank) -> None:
    loss = AnswerLoss(ClaraModel.from_pretrained(tiny_clara_dir))
    memory_BKMD = bank.gather(torch.tensor([[0, 1], [2, 3]]))
    with torch.no_grad():
        both = loss(QUESTIONS, ANSWERS, memory_BKMD)
        alone = torch.cat([loss(QUESTIONS[i : i + 1], ANSWERS[i : i + 1], memory_BKMD[i : i + 1]) for i in (0, 1)])
    torch.testing.assert_close(both, alone, rtol=1e-5, atol=1e-6)
    assert abs(float(both[0] - both[1])) > 1e-3


def test_true_changes_are_those_of_the_loss(tiny_clara_dir: Path, bank: MemoryBank, examples: list[Example]) -> None:
    """With N = K + 1 each slot has two swaps; their mean is recomputed here from whole prompts, one at a time."""
    clara = ClaraModel.from_pretrained(tiny_clara_dir)
    loss, reasoner = AnswerLoss(clara), Reasoner(clara)
    done: list[int] = []
    report = diagnose_selection(
        examples[1:], bank, reasoner, loss, top_k=2, temperature=0.05, batch_size=3, on_done=done.append
    )
    assert (report.n_questions, report.n_candidates, done) == (1, (3, 3), [1])

    query = reasoner.query(QUESTIONS[1:])[0]
    memories = {i: bank.gather(torch.tensor([i]))[0] for i in (0, 1, 2)}
    order = sorted(
        memories, key=lambda i: -float(torch.cosine_similarity(torch.from_numpy(query), memories[i].flatten(), 0))
    )

    def loss_of(rows: list[int]) -> float:
        with torch.no_grad():
            return float(loss(QUESTIONS[1:], ANSWERS[1:], torch.stack([memories[i] for i in rows])[None]))

    base = loss_of(order[:2])
    changes: dict[int, list[float]] = {1: [], 2: []}
    for slot in changes:
        for row in set(memories) - {order[slot - 1]}:
            changes[slot].append(loss_of([*order[: slot - 1], row, *order[slot:2]]) - base)
    for slot, expected in changes.items():
        groups = [g for g in report.swaps if g.slot == slot]
        assert sum(g.n for g in groups) == 2
        measured = sum(g.n * g.true for g in groups) / 2
        assert measured == pytest.approx(sum(expected) / 2, abs=2e-6)


def test_candidates_of_the_whole_store(tiny_clara_dir: Path, bank: MemoryBank, examples: list[Example]) -> None:
    clara = ClaraModel.from_pretrained(tiny_clara_dir)
    bare = [Example(e.question, e.answer) for e in examples]
    report = diagnose_selection(
        bare, bank, Reasoner(clara), AnswerLoss(clara), top_k=3, temperature=0.05, n_candidates=4
    )
    assert report.n_candidates == (4, 4)
    assert {(g.kind, g.slot, g.n) for g in report.swaps} == {
        ("any -> any", s, 18 if s is None else 6) for s in (1, 2, 3, None)
    }


def test_documents_that_the_store_lacks_are_named(tiny_clara_dir: Path, bank: MemoryBank) -> None:
    clara = ClaraModel.from_pretrained(tiny_clara_dir)
    lacking = [Example("Who?", "Nobody", candidate_ids=("d0", "absent"))]
    with pytest.raises(DataError, match="absent"):
        diagnose_selection(lacking, bank, Reasoner(clara), AnswerLoss(clara), top_k=1, temperature=0.05)


def test_the_command_prints_the_table_and_writes_json(
    tiny_clara_dir: Path, bank: MemoryBank, examples: list[Example], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "joint.jsonl"
    rows = [
        {"question": e.question, "answer": e.answer, "doc_ids": e.candidate_ids, "pos_index": e.positives}
        for e in examples
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    args = ["--model", str(tiny_clara_dir), "--store", str(tmp_path / "store"), "--data", str(data), "--top-k", "2"]
    with pytest.raises(SystemExit) as stopped:
        cli.main(["diagnose", "selection", *args, "--device", "cpu", "--json", str(tmp_path / "selection.json")])
    assert stopped.value.code == 0
    captured = capsys.readouterr()
    assert "2 questions, 3-4 candidates each, K = 2, tau = 0.02" in captured.out
    assert "questions 2/2" in captured.err
    report = json.loads((tmp_path / "selection.json").read_text(encoding="utf-8"))
    assert sum(group["n"] for group in report["swaps"] if group["slot"] is None) == 2 * 3 + 2 * 2
    assert [e["estimator"] for e in report["estimators"]] == ["sequential", "leave_own_out"]
