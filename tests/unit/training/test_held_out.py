"""Evaluation during training: right numbers, shared over ranks, and no trace in what is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from clara_dist.config import TrainConfig
from clara_dist.data.examples import Example, read_examples
from clara_dist.model import ClaraModel, PromptBatch, TextBatch
from clara_dist.retrieval.bank import MemoryBank
from clara_dist.store import MemoryStore
from clara_dist.training.batches import StepPlan
from clara_dist.training.collate import JointCollator
from clara_dist.training.loop import run
from clara_dist.training.steps import JointStep
from gloo_ranks import run_on_ranks


def model_weights(path: str) -> dict[str, torch.Tensor]:
    files = sorted(Path(path).rglob("*.safetensors"))
    return {f"{file.parent.name}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


def evaluations(config: TrainConfig) -> dict[int, dict[str, float]]:
    events = map(json.loads, (Path(config.run_dir) / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return {event["step"]: event["metrics"] for event in events if event["kind"] == "eval"}


@pytest.mark.parametrize(
    "engine",
    [
        {"kind": "torch", "dtype": "bfloat16"},
        {"kind": "deepspeed", "zero_stage": 0},
        {"kind": "deepspeed", "zero_stage": 2, "dtype": "bfloat16"},
        {"kind": "deepspeed", "zero_stage": 3},
    ],
    ids=["torch-bf16", "zero0", "zero2-bf16", "zero3"],
)
def test_a_run_that_is_evaluated_ends_as_one_that_is_not(
    make_config: Any, rows_path: str, engine: dict[str, Any]
) -> None:
    """Bit for bit, with dropout: evaluation draws no random number and leaves the optimiser alone."""
    plain = model_weights(run(make_config("plain", engine=engine))["compression"])
    config = make_config("watched", engine=engine, evaluation={"data": rows_path, "every": 2, "batch_size": 3})
    watched = model_weights(run(config)["compression"])
    assert all(torch.equal(plain[name], watched[name]) for name in plain)
    found = evaluations(config)
    assert list(found) == [0, 2, 4]
    assert found[4]["loss"] < found[0]["loss"]
    assert found[4].keys() == {"loss", "answer_loss", "mse", "exact_match"}


def test_the_joint_stage_is_measured_with_all_slots_and_no_dropout(
    make_joint_config: Any, joint_rows_path: str, tiny_store: str, tiny_clara_dir: Path
) -> None:
    evaluation = {"data": joint_rows_path, "batch_size": 3}
    config = make_joint_config("joint", steps=1, top_k=2, temperature=0.05, evaluation=evaluation)
    run(config)
    clara = ClaraModel.from_pretrained(tiny_clara_dir).eval()
    clara.copy_role("compressor", "query_reasoner")
    bank = MemoryBank(MemoryStore.open(tiny_store))
    step = JointStep(clara, bank, config.stages[0]).eval()
    batch = JointCollator(clara.tokenizer, bank)(read_examples(joint_rows_path, "joint"), StepPlan(2, False))
    with torch.no_grad():
        whole = step(batch, batch.totals)
    at_start = evaluations(config)[0]
    assert at_start["loss"] == pytest.approx(float(whole.loss), rel=1e-5)
    assert at_start["recall@2"] == pytest.approx(sum(whole.recalls) / len(whole.recalls))
    assert at_start["candidates"] == 3.5
    assert "gold_in_candidates" not in at_start


def test_corpus_candidates_are_searched_for_held_out_questions_too(
    make_joint_config: Any, joint_rows_path: str
) -> None:
    evaluation = {"data": joint_rows_path, "n_examples": 5}
    config = make_joint_config("corpus", steps=1, candidates={"source": "corpus", "n": 4}, evaluation=evaluation)
    run(config)
    measured = evaluations(config)[0]
    assert measured["candidates"] == 4
    assert measured["recall@1"] <= measured["gold_in_candidates"] <= 1
    assert measured["gold_in_candidates"] * 5 == pytest.approx(round(measured["gold_in_candidates"] * 5))


def greedy_answer(clara: ClaraModel, example: Example) -> tuple[list[int], list[int]]:
    """The answer that the model gives, token by token, and the right one."""
    tokenizer = clara.tokenizer
    ids = [tokenizer.encode_text(text).ids for text in example.documents]
    prompt = tokenizer.prompt_with_answer("answer", len(ids), example.question, example.answer)
    memory_KMD = clara.encode("compressor", TextBatch.from_ids(ids, tokenizer.pad_id)).memory_BMD
    answer: list[int] = []
    while len(answer) < len(prompt.answer_ids):
        said = PromptBatch.from_ids(
            [prompt.prompt_ids], [[*answer, 0]], pad_id=tokenizer.pad_id, memory_ids=tokenizer.memory_ids
        )
        answer.append(int(clara.answer_logits(said, memory_KMD)[-1].argmax()))
    return answer, list(prompt.answer_ids)


def test_exact_match_is_that_of_greedy_generation(make_config: Any, rows_path: str) -> None:
    """Learnt by heart in part, so that some answers are right and some are not."""
    config = make_config("exact", steps=30, batch_size=8, evaluation={"data": rows_path, "every": 60, "batch_size": 3})
    clara = ClaraModel.from_pretrained(run(config)["compression"]).eval()
    with torch.no_grad():
        answers = [greedy_answer(clara, example) for example in read_examples(rows_path, "compression")]
    right = [given == expected for given, expected in answers]
    assert evaluations(config)[30]["exact_match"] == pytest.approx(sum(right) / len(right))
    assert 0 < sum(right) < len(right)


def test_ranks_share_the_questions_whether_they_divide_or_not(make_config: Any, rows_path: str, tmp_path: Path) -> None:
    """Three questions on two ranks in batches of one: a rank passes one batch through that does not count."""
    evaluation = {"data": rows_path, "n_examples": 3, "batch_size": 1, "every": 1}
    alone = make_config("alone", steps=1, evaluation=evaluation)
    engine = {"kind": "deepspeed", "zero_stage": 3}  # where ranks wait for each other in every layer
    shared = make_config("shared", workers=2, engine=engine, steps=1, evaluation=evaluation)
    run(alone)
    run_on_ranks([shared], 2, tmp_path / "rendezvous")
    assert list(evaluations(shared)) == [0, 1]
    assert evaluations(shared)[0] == pytest.approx(evaluations(alone)[0], rel=1e-5)
