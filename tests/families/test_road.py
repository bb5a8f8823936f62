"""Every family through the whole road: compress, train jointly, answer, save, load, serve."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clara_dist.client import Client
from clara_dist.config import ClaraConfig, EngineConfig, LoraSettings, StageConfig, TrainConfig
from clara_dist.config.compress import CompressConfig
from clara_dist.config.serve import ServeConfig
from clara_dist.data.corpus import plan_units
from clara_dist.distributed.actor_pool import map_serially
from clara_dist.distributed.compress_job import run as compress
from clara_dist.distributed.compress_workers import identify_model
from clara_dist.inference.answering import LocalPipeline
from clara_dist.inference.engine import Sampling
from clara_dist.inference.scheduler import Scheduler
from clara_dist.model import ClaraModel, TextBatch
from clara_dist.store import MemoryStore, verify
from clara_dist.training.loop import run as train
from family_models import N_SPARE_ROWS
from tiny_models import randomize_adapters

PLACES = ("lighthouse", "island", "harbour", "station", "chapel", "bridge", "mill", "well")
QUESTIONS = [f"When was the {place} built?" for place in PLACES]
K = 3


@pytest.fixture(scope="module")
def road(family_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model on the family's base, its store of eight passages, and the model that joint training made of it."""
    path = tmp_path_factory.mktemp("road")
    config = ClaraConfig(
        base_model=str(family_dir), n_memory_tokens=2, doc_max_tokens=48, lora=LoraSettings(r=4, dropout=0.1)
    )
    clara = ClaraModel.from_base(config)
    randomize_adapters(clara)
    clara.save_pretrained(path / "start")

    texts = [f"The {place} was built in 18{10 + i}." for i, place in enumerate(PLACES)]
    write_rows(
        path / "corpus.jsonl", [{"doc_id": place, "text": text} for place, text in zip(PLACES, texts, strict=True)]
    )
    job = CompressConfig(
        corpus=(str(path / "corpus.jsonl"),), model=str(path / "start"), store=str(path / "store"), rows_per_shard=3
    )
    units = plan_units(job.corpus, format=job.format, rows_per_unit=job.rows_per_shard)
    compress(job, units, scan_on=map_serially, compress_on=map_serially, identify=lambda: identify_model(job))

    rows = [
        {"question": question, "doc_ids": list(PLACES), "answer": f"18{10 + i}", "pos_index": [i]}
        for i, question in enumerate(QUESTIONS)
    ]
    write_rows(path / "joint.jsonl", rows)
    fields = {"stage": "joint", "data": str(path / "joint.jsonl"), "store": str(path / "store"), "top_k": K, "steps": 3}
    fields |= {"batch_size": 4, "optimizer": {"lr": 1e-2}}
    models = train(
        TrainConfig(
            run_dir=str(path / "run"),
            model=str(path / "start"),
            stages=(StageConfig.model_validate(fields),),
            engine=EngineConfig(kind="torch"),
            workers=1,
            tracker="none",
        )
    )
    (path / "trained").symlink_to(models["joint"], target_is_directory=True)
    return path


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_the_store_holds_what_each_document_gives_alone(road: Path) -> None:
    store = MemoryStore.open(road / "store")
    clara = ClaraModel.from_pretrained(road / "start")
    documents = store.documents(range(len(PLACES)))
    assert [document.doc_id for document in documents] == list(PLACES)
    for row, document in enumerate(documents):
        encoded = clara.tokenizer.encode_text(document.text)
        assert (document.n_tokens, document.truncated) == (encoded.n_tokens, False)
        with torch.inference_mode():
            alone = clara.encode("compressor", TextBatch.from_ids([encoded.ids], clara.tokenizer.pad_id)).memory_BMD[0]
        stored = torch.from_numpy(store.take_memory([row])[0]).float()
        assert (stored - alone).abs().max() < 2e-3 * alone.abs().max()  # half of fp16's last bit is 4.9e-4
    assert verify(road / "store").ok


def test_joint_training_changes_reasoner_and_generator_alone(road: Path) -> None:
    changed = {}
    for role in ("compressor", "query_reasoner", "generator"):
        before, after = (load_file(road / name / role / "adapter_model.safetensors") for name in ("start", "trained"))
        assert before.keys() == after.keys()
        changed[role] = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed["compressor"] == []
    assert len(changed["query_reasoner"]) == len(changed["generator"]) == len(before)  # every tensor learns
    rows = [load_file(road / name / "memory_embeddings.safetensors") for name in ("start", "trained")]
    assert all(torch.equal(rows[0][name], rows[1][name]) for name in rows[0])


def test_answers_that_join_and_leave_get_the_tokens_of_plain_forward_passes(road: Path) -> None:
    clara = ClaraModel.from_pretrained(road / "trained")
    memory = torch.from_numpy(
        MemoryStore.open(road / "store").take_memory(torch.arange(8).reshape(4, 2).numpy())
    ).float()
    memories = [memory[0], memory[1, :1], memory[2], memory[3]]
    questions = ["Who?", *QUESTIONS[1:3], "At nine in the morning the gauges of which island are emptied?"]
    scheduler = Scheduler(clara)
    got: dict[int, list[int]] = {}
    for i in (
        0,
        3,
        1,
        2,
    ):  # the longest joins a short one, and short ones join it, beyond the families' sliding windows
        prompt = clara.tokenizer.prompt(questions[i], len(memories[i]))
        got[scheduler.add(prompt, memories[i], Sampling(max_tokens=20 - 3 * i))] = []
        run_steps(scheduler, got, 5)
    run_steps(scheduler, got, 20)
    assert scheduler.is_idle
    for i, tokens in zip((0, 3, 1, 2), got.values(), strict=True):
        assert tokens == decode_plainly(clara, questions[i], memories[i], 20 - 3 * i)
    assert max(map(len, got.values())) > 8


def run_steps(scheduler: Scheduler, got: dict[int, list[int]], n: int) -> None:
    for _ in range(n):
        for new in scheduler.step():
            if new.finish_reason != "stop":
                got[new.ticket].append(new.token_id)


@torch.inference_mode()
def decode_plainly(clara: ClaraModel, question: str, memory_KMD: torch.Tensor, max_tokens: int) -> list[int]:
    prompt = clara.tokenizer.prompt(question, len(memory_KMD))
    slots = torch.tensor([i for i, token in enumerate(prompt) if token in clara.tokenizer.memory_ids])
    ids: list[int] = []
    while len(ids) < max_tokens:
        with clara.role("generator"):
            hidden = clara.body(clara.splice(torch.tensor([prompt + ids]), slots, memory_KMD))
        token = int(clara.logits(hidden[0, -1]).argmax())
        if token in clara.tokenizer.stop_ids:
            break
        ids.append(token)
    return ids


def test_rows_behind_the_tokenizer_are_never_generated(road: Path) -> None:
    clara = ClaraModel.from_pretrained(road / "trained")
    n_rows = clara.base.get_output_embeddings().weight.shape[0]
    assert n_rows == clara.tokenizer.first_memory_id + N_SPARE_ROWS
    assert clara.logits(torch.zeros(1, clara.hidden_size)).shape[-1] == clara.tokenizer.first_memory_id


@pytest.fixture(scope="module")
def served(road: Path, cluster: None) -> Iterator[Client]:
    from clara_dist.distributed.serve_app import serving

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = ServeConfig(model=str(road / "trained"), store=str(road / "store"), port=port, top_k=K, max_tokens=8)
    with serving(config) as url, Client(url) as client:
        yield client


def test_the_server_answers_as_the_saved_model_does(road: Path, served: Client) -> None:
    pipeline = LocalPipeline(ClaraModel.from_pretrained(road / "trained"), MemoryStore.open(road / "store"))
    expected = pipeline.answer(QUESTIONS, top_k=K, max_tokens=8)
    assert len({(answer.text, answer.sources) for answer in expected}) > 2
    for question, answer in zip(QUESTIONS, expected, strict=True):
        reply = served.ask(question)
        assert reply.answer == answer.text
        assert [source.doc_id for source in reply.sources] == [source.doc_id for source in answer.sources]
        assert [source.score for source in reply.sources] == pytest.approx([s.score for s in answer.sources], abs=1e-5)
