"""Steps against the same numbers written down plainly, example by example."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clara_dist.config import StageConfig
from clara_dist.data.examples import Example, read_examples
from clara_dist.model import ClaraModel, PromptBatch, TextBatch
from clara_dist.retrieval.bank import MemoryBank
from clara_dist.store import MemoryStore
from clara_dist.training.batches import StepPlan, Totals
from clara_dist.training.collate import CompressionCollator, JointCollator, TextCollator
from clara_dist.training.loop import run
from clara_dist.training.steps import CompressionStep, JointStep

PLAN = StepPlan(n_slots=1, from_corpus=False)


@pytest.fixture
def clara(tiny_clara_dir: Path) -> ClaraModel:
    return ClaraModel.from_pretrained(tiny_clara_dir)


def memory_of(clara: ClaraModel, text: str) -> tuple[Tensor, Tensor]:
    ids = clara.tokenizer.encode_text(text).ids
    encoded = clara.encode("compressor", TextBatch.from_ids([ids], clara.tokenizer.pad_id), with_text_mean=True)
    assert encoded.text_mean_BD is not None
    return encoded.memory_BMD[0], encoded.text_mean_BD[0]


def nll_of(clara: ClaraModel, question: str, answer: str, memory_TMD: Tensor) -> Tensor:
    tokenizer = clara.tokenizer
    prompt = tokenizer.prompt_with_answer("answer", len(memory_TMD), question, answer)
    batch = PromptBatch.from_ids(
        [prompt.prompt_ids], [prompt.answer_ids], pad_id=tokenizer.pad_id, memory_ids=tokenizer.memory_ids
    )
    return clara.answer_nll(batch, memory_TMD)


def test_compression_loss_is_the_mean_over_tokens_and_document_slots(clara: ClaraModel, rows_path: str) -> None:
    examples = read_examples(rows_path, "compression")[:4]  # the first passage is read three times
    batch = CompressionCollator(clara.tokenizer)(examples, PLAN)
    assert len(batch.documents.lengths_B) == 4
    assert len(batch.document_T) == 6

    output = CompressionStep(clara, mse_weight=0.1)(batch, batch.totals)
    nlls, squares = [], []
    for example in examples:
        states = [memory_of(clara, text) for text in example.documents]
        nlls.append(nll_of(clara, example.question, example.answer, torch.stack([memory for memory, _ in states])))
        squares += [(memory.mean(0) - text).square().mean() for memory, text in states]
    expected = torch.cat(nlls).mean() + 0.1 * torch.stack(squares).mean()
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=0)


def test_micro_batches_add_up_to_the_batch(clara: ClaraModel, rows_path: str) -> None:
    clara.set_trainable(("compressor", "generator"), memory_embeddings=True)
    examples = read_examples(rows_path, "compression")
    collate, step = CompressionCollator(clara.tokenizer), CompressionStep(clara, mse_weight=0.1)
    whole = collate(examples, PLAN)

    def gradient(parts: list[list[Example]]) -> tuple[float, Tensor]:
        clara.zero_grad()
        loss = 0.0
        for part in parts:
            output = step(collate(part, PLAN), whole.totals)
            output.loss.backward()
            loss += float(output.loss.detach())
        return loss, torch.cat([p.grad.flatten() for p in clara.trainable_parameters().values() if p.grad is not None])

    loss, expected = gradient([examples])
    parts_loss, got = gradient([examples[:1], examples[1:6], examples[6:]])
    assert parts_loss == pytest.approx(loss, rel=1e-6)
    # Measured: 4e-7.
    assert float((got - expected).norm() / expected.norm()) < 1e-5


def joint_parts(
    clara: ClaraModel, store: str, path: str, **fields: Any
) -> tuple[JointStep, JointCollator, list[Example]]:
    clara.set_trainable(("query_reasoner", "generator"), memory_embeddings=False)
    bank = MemoryBank(MemoryStore.open(store), where=fields.pop("where", None))
    stage = StageConfig.model_validate({"stage": "joint", "data": path, "steps": 1, "store": store} | fields)
    return JointStep(clara, bank, stage), JointCollator(clara.tokenizer, bank), read_examples(path, "joint")


def question_scores(clara: ClaraModel, example: Example, memories: Tensor) -> Tensor:
    ids = clara.tokenizer.encode_text(example.question).ids
    query = clara.encode("query_reasoner", TextBatch.from_ids([ids], clara.tokenizer.pad_id)).memory_BMD.flatten()
    return torch.cosine_similarity(query[None], memories.flatten(1), dim=1)


def test_joint_loss_reads_the_best_of_each_ragged_candidate_list(
    clara: ClaraModel, tiny_store: str, joint_rows_path: str
) -> None:
    step, collate, examples = joint_parts(clara, tiny_store, joint_rows_path, top_k=2, temperature=0.05)
    store = MemoryStore.open(tiny_store)
    batch = collate(examples, StepPlan(n_slots=2, from_corpus=False))
    assert batch.candidates_BN is not None
    assert (batch.candidates_BN == -1).sum(1).tolist() == [1, 0] * 4
    output = step(batch, batch.totals)

    nlls, recalls = [], []
    for example in examples:
        memories = torch.from_numpy(store.take_memory(store.rows_of(example.candidate_ids))).float()
        best = question_scores(clara, example, memories).topk(2).indices
        nlls.append(nll_of(clara, example.question, example.answer, memories[best]))
        recalls.append(float(0 in best.tolist()))
    torch.testing.assert_close(output.loss, torch.cat(nlls).mean(), rtol=1e-5, atol=0)
    assert output.recalls == recalls
    assert 0 < sum(recalls) < len(recalls)
    fewer = collate(examples, PLAN)  # one slot is read, recall is still that of the best two
    assert step(fewer, fewer.totals).recalls == recalls


@pytest.mark.parametrize("ablation", ["hard", "soft", "contrastive"])
def test_ablations_read_and_teach_what_they_say(
    ablation: str, clara: ClaraModel, tiny_store: str, joint_rows_path: str
) -> None:
    fields: dict[str, Any] = {"top_k": 2, "temperature": 0.5}
    batch: Any = None

    def losses(**more: Any) -> dict[str, Any]:
        nonlocal batch
        step, collate, examples = joint_parts(clara, tiny_store, joint_rows_path, **fields, **more)
        batch = collate(examples, StepPlan(n_slots=2, from_corpus=False))
        clara.zero_grad()
        output = step(batch, batch.totals)
        output.loss.backward()
        norms = dict.fromkeys(("query_reasoner", "generator"), 0.0)
        for name, parameter in clara.trainable_parameters().items():
            assert parameter.grad is not None  # what an engine reduces must be there on all ranks
            norms[clara.role_of(name)] += float(parameter.grad.norm())
        served = step.eval()(batch, batch.totals)
        return {"loss": float(output.loss), "shares": output.shares, "norms": norms, "served": served}

    ste, other = losses(), losses(ablation=ablation)
    assert ste["norms"]["query_reasoner"] > 0
    assert (other["norms"]["query_reasoner"] == 0) is (ablation == "hard")
    served = other["served"].loss - other["served"].shares.get("contrastive", 0)
    torch.testing.assert_close(served, ste["served"].loss, rtol=1e-6, atol=0)
    if ablation == "contrastive":
        assert float(other["shares"]["answer_loss"]) == pytest.approx(ste["loss"], rel=1e-6)
        assert other["loss"] == pytest.approx(ste["loss"] + float(other["shares"]["contrastive"]), rel=1e-6)
        assert float(other["shares"]["contrastive"]) > 0
    else:
        assert (other["loss"] == pytest.approx(ste["loss"], rel=1e-6)) is (ablation == "hard")


def test_joint_gradients_reach_reasoner_and_generator_alone(
    clara: ClaraModel, tiny_store: str, joint_rows_path: str
) -> None:
    step, collate, examples = joint_parts(clara, tiny_store, joint_rows_path)
    batch = collate(examples, PLAN)
    step(batch, batch.totals).loss.backward()
    reached = {clara.role_of(name) for name, p in clara.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert reached == {"query_reasoner", "generator"}


@pytest.mark.parametrize(
    ("estimator", "roles"),
    [("leave_own_out", {"generator"}), ("sequential", {"generator", "query_reasoner"})],
)
def test_a_slot_that_is_read_alone_is_still_one_of_k(
    clara: ClaraModel, tiny_store: str, joint_rows_path: str, estimator: str, roles: set[str]
) -> None:
    """Of two candidates, both chosen, the first slot could only compare its own document with the other."""
    step, collate, examples = joint_parts(clara, tiny_store, joint_rows_path, top_k=2, estimator=estimator)
    pairs = [dataclasses.replace(e, candidate_ids=e.candidate_ids[:2], positives=()) for e in examples]
    batch = collate(pairs, StepPlan(n_slots=1, from_corpus=False))
    step(batch, batch.totals).loss.backward()
    reached = {clara.role_of(name) for name, p in clara.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert reached == roles


def test_candidates_from_the_corpus_are_its_nearest_rows(
    clara: ClaraModel, tiny_store: str, joint_rows_path: str
) -> None:
    fields = {"candidates": {"source": "corpus", "n": 3}, "where": {"parity": ("odd",)}}
    step, collate, examples = joint_parts(clara, tiny_store, joint_rows_path, **fields)
    batch = collate(examples, StepPlan(n_slots=1, from_corpus=True))
    assert batch.candidates_BN is None
    store = MemoryStore.open(tiny_store)
    odd = torch.tensor([1, 3, 5, 7])
    memories = torch.from_numpy(store.take_memory(odd.numpy())).float()
    nlls = []
    for example in examples:
        best = question_scores(clara, example, memories).argmax()
        nlls.append(nll_of(clara, example.question, example.answer, memories[best][None]))
    loss = step(batch, batch.totals).loss
    torch.testing.assert_close(loss, torch.cat(nlls).mean(), rtol=1e-5, atol=0)


def test_supervised_documents_are_targets_of_the_base_stage(clara: ClaraModel) -> None:
    plain = Example("When?", "1871", ("The mill was built in 1871.",))
    supervised = Example("When?", "1871", plain.documents, supervise_documents=True)
    collate = TextCollator(clara.tokenizer)
    prompt = clara.tokenizer.text_prompt_with_answer("answer", plain.question, plain.documents, plain.answer)
    start, end = clara.tokenizer.text_span(prompt.prompt_ids, plain.documents)
    labels = collate([plain, supervised], PLAN).prompts.labels_P.tolist()
    answer = prompt.answer_ids
    assert labels == [*answer, *prompt.prompt_ids[start:end], *answer]


def test_totals_count_distinct_documents_and_no_padding(clara: ClaraModel, rows_path: str) -> None:
    examples = read_examples(rows_path, "compression")
    tokenizer = clara.tokenizer
    prompts = [tokenizer.prompt_with_answer("answer", len(e.documents), e.question, e.answer) for e in examples]
    distinct = {text for example in examples for text in example.documents}
    tokens = sum(len(tokenizer.encode_text(text).ids) for text in distinct)
    tokens += sum(len(prompt.prompt_ids) + len(prompt.answer_ids) for prompt in prompts)
    answers = sum(len(prompt.answer_ids) for prompt in prompts)
    assert CompressionCollator(tokenizer)(examples, PLAN).totals == Totals(answers, 11, tokens, truncated=0)


def test_documents_that_are_cut_are_counted_by_slot_and_reported(make_config: Any, rows_path: str) -> None:
    rows = Path(rows_path).read_text(encoding="utf-8")
    Path(rows_path).write_text(rows.replace("The lighthouse was", "The lighthouse " * 30 + "was"), encoding="utf-8")
    events: list[Any] = []
    run(make_config("cut", steps=1, batch_size=8), on_progress=events.append)
    (metrics,) = [event.metrics for event in events if event.step]
    assert metrics["truncated"] == pytest.approx(4 / 11)  # read four times, twice of them by its own row
