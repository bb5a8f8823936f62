"""Runs of the joint stage: from the store, by the answer loss alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from clara_dist.errors import DataError, FingerprintMismatchError, TrainingError
from clara_dist.model import ClaraModel
from clara_dist.store import Fingerprint, MemoryStore
from clara_dist.training.loop import run

CANDIDATES = {"given": {"source": "given"}, "mixed": {"source": "mixed", "n": 6, "corpus_share": 0.5}}


@pytest.mark.parametrize("source", ["given", "mixed"])
def test_it_learns_without_compressing_anything(
    make_joint_config: Any, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    encode = ClaraModel.encode

    def spy(self: ClaraModel, role: Any, *args: Any, **kwargs: Any) -> Any:
        encoded.append(role)
        return encode(self, role, *args, **kwargs)

    monkeypatch.setattr(ClaraModel, "encode", spy)
    events: list[Any] = []
    fields = {"steps": 30, "batch_size": 8, "top_k": 2, "temperature": 0.05, "candidates": CANDIDATES[source]}
    run(make_joint_config("run", **fields), on_progress=events.append)
    metrics = [event.metrics for event in events if event.step]
    assert set(encoded) == {"query_reasoner"}
    assert metrics[-1]["loss"] < metrics[0]["loss"] / 2
    assert all(0 <= step["recall@2"] <= 1 and step["grad_norm/query_reasoner"] > 0 for step in metrics)


def test_the_reasoner_starts_as_the_compressor_once(
    make_joint_config: Any, tiny_clara_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[tuple[str, str]] = []
    copy_role = ClaraModel.copy_role

    def spy(self: ClaraModel, source: Any, target: Any) -> None:
        copies.append((source, target))
        copy_role(self, source, target)

    monkeypatch.setattr(ClaraModel, "copy_role", spy)
    first = run(make_joint_config("first", steps=1))["joint"]
    assert copies == [("compressor", "query_reasoner")]
    before, after = (
        load_file(Path(path) / "compressor" / "adapter_model.safetensors") for path in (tiny_clara_dir, first)
    )
    assert all(torch.equal(before[name], after[name]) for name in before)

    run(make_joint_config("second", steps=1).model_copy(update={"model": first}))
    assert len(copies) == 1


@pytest.mark.parametrize(
    "engine",
    [{"zero_stage": 2, "dtype": "bfloat16"}, {"zero_stage": 3}, {"kind": "torch", "dtype": "bfloat16"}],
    ids=["zero2-bf16", "zero3", "torch-bf16"],
)
def test_what_is_frozen_is_saved_as_it_was_and_the_store_stays_its_models(
    make_joint_config: Any, tiny_store: str, engine: dict[str, Any]
) -> None:
    """DeepSpeed rounds the frozen compressor too; written like that, it would no longer be the one of the store."""
    output = run(make_joint_config("frozen", steps=2, engine={"kind": "deepspeed"} | engine))["joint"]
    trained = load_file(Path(output) / "generator" / "adapter_model.safetensors")
    assert not all(torch.equal(tensor, tensor.bfloat16().float()) for tensor in trained.values())
    model = ClaraModel.from_pretrained(output)
    MemoryStore.open(tiny_store).require_fingerprint(Fingerprint(model.fingerprint_fields()))


def test_a_single_candidate_teaches_nothing(make_joint_config: Any, joint_rows_path: str) -> None:
    config = make_joint_config("single", candidates={"source": "corpus", "n": 1})
    with pytest.raises(TrainingError, match="no gradient reaches query_reasoner"):
        run(config)


def test_a_store_of_another_model_is_refused(make_joint_config: Any, make_config: Any) -> None:
    other = run(make_config("other", steps=1))["compression"]
    config = make_joint_config("joint").model_copy(update={"model": other})
    with pytest.raises(FingerprintMismatchError, match="compressor"):
        run(config)


def test_too_few_candidates_are_told_before_the_first_step(make_joint_config: Any) -> None:
    events: list[Any] = []
    with pytest.raises(DataError, match=r"fewer candidates.*\n.*3 candidates of 'When was the lighthouse"):
        run(make_joint_config("few", top_k=4), on_progress=events.append)
    assert not any(event.step for event in events)


def test_candidates_that_the_store_lacks_are_named(make_joint_config: Any, joint_rows_path: str) -> None:
    rows = Path(joint_rows_path).read_text(encoding="utf-8")
    Path(joint_rows_path).write_text(rows.replace("The mill was", "A mill was"), encoding="utf-8")
    with pytest.raises(DataError, match="not in the memory store"):
        run(make_joint_config("lacking", batch_size=8))


def test_a_right_document_that_a_searched_store_lacks_counts_as_not_found(
    make_joint_config: Any, joint_rows_path: str
) -> None:
    def recalls(name: str) -> list[float]:
        events: list[Any] = []
        candidates = {"source": "corpus", "n": 8}
        run(make_joint_config(name, batch_size=8, candidates=candidates, log_every=1), on_progress=events.append)
        texts.extend(event.text for event in events)
        return [event.metrics["gold_in_candidates"] for event in events if event.step]

    texts: list[str] = []
    assert set(recalls("whole")) == {1.0}  # all 8 documents are searched for
    assert not any("not found" in text for text in texts)
    rows = Path(joint_rows_path).read_text(encoding="utf-8")
    Path(joint_rows_path).write_text(rows.replace("The mill was", "A mill was"), encoding="utf-8")
    assert set(recalls("lacking")) == {1 - 1 / 8}
    assert any("documents that examples name are not in the store" in text for text in texts)


def test_an_evaluation_that_searches_is_held_to_the_stores_size_too(
    make_joint_config: Any, joint_rows_path: str
) -> None:
    evaluation = {"data": joint_rows_path, "candidates": "corpus"}
    config = make_joint_config("searched", evaluation=evaluation, candidates={"source": "given", "n": 9})
    with pytest.raises(TrainingError, match="fewer documents than a search"):
        run(config)


@pytest.mark.parametrize(
    ("candidates", "there"),
    [
        ({"source": "corpus", "n": 9}, "8 documents"),
        ({"source": "mixed", "n": 5, "where": {"parity": ["even"]}}, r"4 documents where \{'parity': \('even',\)\}"),
    ],
)
def test_a_corpus_with_fewer_documents_than_a_search_asks_for_is_refused_at_the_start(
    make_joint_config: Any, candidates: dict[str, Any], there: str
) -> None:
    events: list[Any] = []
    config = make_joint_config("small", candidates=candidates)
    with pytest.raises(TrainingError, match=rf"fewer documents than a search(.|\n)*got: {there}\n.*at least"):
        run(config, on_progress=events.append)
    assert not any(event.step for event in events)
