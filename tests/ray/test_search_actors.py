"""The search of the joint stage on actors: equal to the worker's own, also when one of them is killed."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from safetensors.torch import load_file

from clara_dist.config import EngineConfig, StageConfig, TrainConfig
from clara_dist.config.compress import CompressConfig
from clara_dist.data.corpus import plan_units
from clara_dist.distributed import compress_job, train_job
from clara_dist.distributed.actor_pool import map_serially
from clara_dist.distributed.compress_workers import identify_model
from clara_dist.distributed.search_actors import AskActors, searching
from clara_dist.errors import ClusterError, StoreError
from clara_dist.retrieval import ExactSearcher
from clara_dist.store import MemoryStore
from clara_dist.training.loop import run
from clara_dist.training.progress import Progress

CANDIDATES = {"source": "corpus", "n": 6, "where": {"parity": ["even"]}}


@pytest.fixture
def config(tmp_path: Path, tiny_clara_dir: Path) -> TrainConfig:
    """A joint stage over 24 documents in 4 shards, with two search actors."""
    corpus, questions = tmp_path / "corpus.jsonl", tmp_path / "questions.jsonl"
    documents = [
        {"doc_id": f"d{i}", "text": f"House {i} is from 18{i}.", "metadata": {"parity": ("even", "odd")[i % 2]}}
        for i in range(24)
    ]
    rows = [{"question": f"When was house {i} built?", "gold_answer": f"18{i}"} for i in range(8)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in documents), encoding="utf-8")
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    job = CompressConfig(
        corpus=(str(corpus),),
        model=str(tiny_clara_dir),
        store=str(tmp_path / "store"),
        metadata_columns={"parity": "string"},
        rows_per_shard=6,
    )
    units = plan_units(job.corpus, rows_per_unit=6)
    compress_job.run(job, units, scan_on=map_serially, compress_on=map_serially, identify=lambda: identify_model(job))
    stage: dict[str, Any] = {"stage": "joint", "data": str(questions), "store": job.store, "candidates": CANDIDATES}
    stage |= {"batch_size": 4, "steps": 40, "log_every": 1, "temperature": 0.05, "optimizer": {"lr": 1e-3}}
    return TrainConfig(
        run_dir=str(tmp_path / "run"),
        model=str(tiny_clara_dir),
        stages=(StageConfig.model_validate(stage),),
        engine=EngineConfig(kind="torch"),
        search_actors=2,
        cpus_per_search_actor=0.5,
        use_gpu=False,
        tracker="none",
    )


def search_processes() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "PartSearcher" in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def test_training_goes_on_as_undisturbed_when_a_search_actor_is_killed(
    local_ray: None, config: TrainConfig, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill_one_once(event: Progress) -> None:
        if event.step is not None and not killed:
            victim = search_processes()[0]
            victim.kill()
            killed.append(victim.pid)

    got = load_reasoner(train_job.train(config, on_progress=kill_one_once)["joint"])
    assert killed
    alone = config.model_copy(update={"run_dir": str(tmp_path / "alone"), "search_actors": 0})
    expected = load_reasoner(run(alone)["joint"])
    # The same documents in the same order at every step, so the same numbers.
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert psutil.wait_procs(search_processes(), timeout=60)[1] == []


def load_reasoner(model_dir: str) -> dict[str, Any]:
    return dict(load_file(Path(model_dir) / "query_reasoner" / "adapter_model.safetensors"))


def test_actors_are_equal_to_a_search_here_and_a_lost_one_is_no_gap(local_ray: None, config: TrainConfig) -> None:
    store = MemoryStore.open(str(config.stages[0].store))
    query = torch.randn(3, store.n_memory_tokens * store.hidden_size, generator=torch.Generator().manual_seed(0))
    expected = ExactSearcher(store, store.rows_where({"parity": ("even",)})).search(query, 12)
    with searching(config, ["joint"]) as searchers:
        searcher = searchers["joint"]
        assert searcher.n_rows == 12
        assert torch.equal(searcher.search(query, 12).rows_BK, expected.rows_BK)
        ask = searcher._ask
        assert isinstance(ask, AskActors)
        ray.kill(ask.actors[1], no_restart=True)
        with pytest.raises(ClusterError, match=r"a search actor of the store .* is lost"):
            searcher.search(query, 3)


def test_a_column_that_the_store_lacks_is_named_before_an_actor_starts(local_ray: None, config: TrainConfig) -> None:
    stage = config.stages[0]
    other = stage.candidates.model_copy(update={"where": {"colour": ("red",)}})
    stages = (stage.model_copy(update={"candidates": other}),)
    wrong = config.model_copy(update={"stages": stages})
    with pytest.raises(StoreError, match="colour"), searching(wrong, ["joint"]):
        pytest.fail("it started")
