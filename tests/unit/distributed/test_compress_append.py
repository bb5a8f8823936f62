"""Corpora that are added to a store: `compress --append`, on the serial mapper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clara_dist.config.base import load_config
from clara_dist.config.compress import CompressConfig
from clara_dist.data.corpus import plan_units
from clara_dist.distributed.actor_pool import map_serially
from clara_dist.distributed.compress_job import CompressReport, run
from clara_dist.distributed.compress_workers import identify_model
from clara_dist.errors import ConfigError, StoreError
from clara_dist.store import MemoryStore, append_store, delete, diff, verify
from clara_dist.store.writer import shard_names


@pytest.fixture
def settings(tmp_path: Path, tiny_clara_dir: Path) -> dict[str, Any]:
    return {"model": str(tiny_clara_dir), "store": str(tmp_path / "store"), "rows_per_shard": 3}


def corpus(folder: Path, name: str, texts: dict[str, str]) -> str:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"doc_id": i, "text": text}) + "\n" for i, text in texts.items()))
    return str(path)


def compress(settings: dict[str, Any], path: str, **changes: Any) -> CompressReport:
    config = CompressConfig(**settings, corpus=(path,), **changes)
    units = plan_units(config.corpus, format=config.format, rows_per_unit=config.rows_per_shard)
    return run(config, units, scan_on=map_serially, compress_on=map_serially, identify=lambda: identify_model(config))


def texts_of(store: str) -> dict[str, str]:
    opened = MemoryStore.open(store)
    assert verify(store).ok
    return {d.doc_id: d.text for d in opened.documents(np.arange(opened.n_documents))}


def test_a_corpus_is_added_and_adding_it_again_does_nothing(settings: dict[str, Any], tmp_path: Path):
    old = {f"a{i}": f"rain on island {i}" for i in range(5)}
    new = {f"b{i}": f"gauges emptied at {i}" for i in range(4)}
    first = compress(settings, corpus(tmp_path, "old", old))
    report = compress(settings, corpus(tmp_path, "new", new), append=True)
    assert (first.version, report.version, report.n_documents, report.n_passages) == (1, 2, 9, 9)
    assert texts_of(settings["store"]) == old | new
    again = compress(settings, corpus(tmp_path, "new", new), append=True)
    assert (again.version, again.was_complete, again.n_kept) == (2, True, 4)
    assert texts_of(settings["store"]) == old | new
    # The same memories as those of a store of its own.
    alone = settings | {"store": str(tmp_path / "alone")}
    compress(alone, corpus(tmp_path, "new", new), append=True)
    report = diff(MemoryStore.open(settings["store"]), MemoryStore.open(alone["store"]))
    assert (report.changed, report.added, report.n_same) == ({}, (), 4)
    assert append_store(alone["store"], settings["store"], on_existing="skip").n_documents == 9


def test_documents_that_are_there_are_refused_skipped_or_replaced(settings: dict[str, Any], tmp_path: Path):
    compress(settings, corpus(tmp_path, "old", {"a": "rain", "b": "island", "c": "nine"}))
    later = corpus(tmp_path, "later", {"b": "new island", "d": "gauges"})
    with pytest.raises(StoreError, match=r"1 of the documents are in the store.*\n.*'b'"):
        compress(settings, later, append=True)
    assert MemoryStore.open(settings["store"]).version == 1
    assert len(shard_names(settings["store"])) == 1  # it was told before anything was compressed
    skipped = compress(settings, later, append=True, on_existing="skip")
    assert (skipped.version, skipped.n_documents) == (2, 4)
    assert texts_of(settings["store"]) == {"a": "rain", "b": "island", "c": "nine", "d": "gauges"}
    newest = corpus(tmp_path, "newest", {"b": "newest island", "e": "at"})
    replaced = compress(settings, newest, append=True, on_existing="replace")
    assert (replaced.version, replaced.n_documents) == (3, 5)
    assert texts_of(settings["store"])["b"] == "newest island"


def test_a_corpus_that_has_grown_meets_what_it_brought_before(settings: dict[str, Any], tmp_path: Path):
    long = "rain on island nine and gauges emptied at nine " * 4
    texts = {"a": "rain", "b": long, "c": "nine", "d": "at"}
    compress(settings, corpus(tmp_path, "growing", texts), append=True)
    # The first shard is the store's own; the last one, which has grown, brings d again, and a, which it loses.
    path = corpus(tmp_path, "growing", {**texts, "e": "new"})
    Path(path).write_text(Path(path).read_text() + '{"doc_id": "a", "text": "island"}\n')
    with pytest.raises(StoreError, match=r"^1 of the documents are in the store.*\n  got: 'd'\n"):
        compress(settings, path, append=True, max_rejects=1)
    delete(settings["store"], doc_ids=["d"])
    assert compress(settings, path, append=True, max_rejects=1).n_documents == 5
    with pytest.raises(StoreError, match=r"1 of the documents are in the store.*\n.*'b'"):  # stored as passages
        compress(settings, corpus(tmp_path, "other", {"b": "island", "f": "at"}), append=True)


def test_a_job_that_is_repeated_does_not_bring_deleted_documents_back(settings: dict[str, Any], tmp_path: Path):
    path = corpus(tmp_path, "old", {"a": "rain", "b": "island", "c": "nine", "d": "at"})
    compress(settings, path)
    delete(settings["store"], doc_ids=["b"])
    report = compress(settings, path)
    assert (report.version, report.was_complete, report.n_documents) == (2, True, 3)
    anew = compress(settings, path, overwrite=True)
    assert (anew.version, anew.was_complete, anew.n_documents, anew.n_kept) == (3, False, 4, 4)
    delete(settings["store"], doc_ids=["b"])
    assert compress(settings, path, append=True).n_documents == 4  # asked for, it is added
    assert list(texts_of(settings["store"])) == ["a", "b", "c", "d"]


def test_appending_and_overwriting_exclude_each_other(settings: dict[str, Any]):
    given = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    with pytest.raises(ConfigError, match="choose one"):
        load_config(CompressConfig, None, [*given, 'corpus=["x.jsonl"]', "append=true", "overwrite=true"])
