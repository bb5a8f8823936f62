"""Long documents on their way through the compression job, on the serial mapper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clara_dist.config.compress import CompressConfig
from clara_dist.data.corpus import plan_units
from clara_dist.distributed.actor_pool import map_serially
from clara_dist.distributed.compress_job import CompressReport, absolute_paths, run
from clara_dist.distributed.compress_workers import identify_model
from clara_dist.errors import ConfigError, DataError, StoreError
from clara_dist.inference.compressor import DocumentCompressor
from clara_dist.model.clara import ClaraModel
from clara_dist.store import MemoryStore, shard_names, verify

LONG = " ".join(f"Gauge {i} is emptied at {i}." for i in range(12))
SHORT = "Ada Tolliver."
DOC_MAX_TOKENS = 24  # of the tiny model


def make_config(tmp_path: Path, model: Path, texts: dict[str, str], **changes: Any) -> CompressConfig:
    rows = [{"doc_id": d, "title": d, "text": text, "metadata": {"n": i}} for i, (d, text) in enumerate(texts.items())]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings: dict[str, Any] = {
        "corpus": (str(corpus),),
        "model": str(model),
        "store": str(tmp_path / "store"),
        "rows_per_shard": 2,
        "metadata_columns": {"n": "int64"},
    }
    return absolute_paths(CompressConfig(**(settings | changes)))


def compress(config: CompressConfig) -> CompressReport:
    units = plan_units(config.corpus, format=config.format, rows_per_unit=config.rows_per_shard or 1)
    return run(config, units, scan_on=map_serially, compress_on=map_serially, identify=lambda: identify_model(config))


def test_a_long_document_becomes_passages_with_memories_of_their_own(tmp_path: Path, tiny_clara_dir: Path):
    texts = {"a": SHORT, "b": LONG, "c": LONG[::-1], "d": SHORT}
    config = make_config(tmp_path, tiny_clara_dir, texts)
    report = compress(config)
    store = MemoryStore.open(config.store)
    documents = store.documents(range(store.n_documents))
    n_b, n_c = (sum(d.parent_id == parent for d in documents) for parent in "bc")
    assert min(n_b, n_c) > 3
    assert [d.doc_id for d in documents] == [
        *("a", *(f"b#{i + 1}" for i in range(n_b)), *(f"c#{i + 1}" for i in range(n_c)), "d")
    ]
    assert [d.parent_id for d in documents] == ["a", *"b" * n_b, *"c" * n_c, "d"]
    assert (report.n_documents, report.n_passages, report.n_truncated) == (4, n_b + n_c + 2, 0)
    assert "4 documents in 2 shards" in str(report)
    assert f"split: {n_b + n_c + 2} passages" in str(report)
    assert store.rows_where({"n": (1,)}).tolist() == store.rows_of_documents(["b"])[0].tolist()
    for document in documents:
        assert document.title == document.parent_id
        assert document.text in texts[document.parent_id]
        assert document.n_tokens <= DOC_MAX_TOKENS + 3
        assert not document.truncated
    # Neighbours overlap, so that the passages of b are its text when each is laid over the one before.
    rebuilt = ""
    for document in documents[1 : 1 + n_b]:
        shared = next(n for n in range(len(document.text), -1, -1) if rebuilt.endswith(document.text[:n]))
        assert shared or not rebuilt
        rebuilt += document.text[shared:]
    assert rebuilt == LONG
    alone = DocumentCompressor(ClaraModel.from_pretrained(tiny_clara_dir))
    for row in (0, 2, n_b, n_b + n_c + 1):
        memory_MD = alone.compress([(documents[row].title, documents[row].text)]).memory_SMD[0]
        # Another padding rounds differently, and fp16 rounds that up or down: one unit in the last place.
        np.testing.assert_allclose(store.take_memory(np.array(row)), memory_MD, rtol=2**-10, atol=1e-5)
    assert verify(config.store).ok


def test_truncation_is_a_choice_and_is_recorded(tmp_path: Path, tiny_clara_dir: Path):
    config = make_config(tmp_path, tiny_clara_dir, {"a": SHORT, "b": LONG, "c": LONG}, long_documents="truncate")
    report = compress(config)
    store = MemoryStore.open(config.store)
    documents = store.documents(range(3))
    assert [(d.doc_id, d.parent_id, d.text, d.truncated) for d in documents] == [
        *(("a", "a", SHORT, False), ("b", "b", LONG, True), ("c", "c", LONG, True))
    ]
    assert [d.n_tokens for d in documents[1:]] == [DOC_MAX_TOKENS + 3] * 2
    assert (report.n_documents, report.n_passages, report.n_truncated) == (3, 3, 2)
    assert "so cut: 2" in str(report)
    assert [shard.truncated for shard in store.manifest.shards] == [1, 1]
    assert store.manifest.writer["config"]["long_documents"] == "truncate"


def test_the_choice_changes_the_shards_but_not_the_fingerprint(tmp_path: Path, tiny_clara_dir: Path):
    texts = {"a": LONG}
    split = make_config(tmp_path, tiny_clara_dir, texts)
    assert split.passage_overlap_tokens == DOC_MAX_TOKENS // 4
    first = compress(split)
    assert compress(make_config(tmp_path, tiny_clara_dir, texts, passage_overlap_tokens=6)).was_complete
    names = set(shard_names(split.store))
    fingerprint = MemoryStore.open(split.store).fingerprint
    for changes in ({"passage_overlap_tokens": 3}, {"passage_overlap_tokens": 0}, {"long_documents": "truncate"}):
        other = make_config(tmp_path, tiny_clara_dir, texts, **changes)
        with pytest.raises(StoreError, match="the same one with other settings"):
            compress(other)
        compress(other.model_copy(update={"overwrite": True}))
        assert set(shard_names(split.store)) > names
        names = set(shard_names(split.store))
        assert MemoryStore.open(split.store).fingerprint == fingerprint
    assert MemoryStore.open(split.store, version=1).n_documents == first.n_passages


def test_a_job_that_goes_on_counts_documents(tmp_path: Path, tiny_clara_dir: Path):
    config = make_config(tmp_path, tiny_clara_dir, {f"d{i}": LONG if i % 2 else SHORT for i in range(6)})
    done = compress(config)
    Path(config.store, "manifests", "00000001.json").unlink()
    sorted(Path(config.store, "shards").iterdir())[0].unlink()
    again = compress(config)
    assert (again.n_kept, again.n_documents, again.n_passages) == (4, 6, done.n_passages)
    assert verify(config.store).ok


@pytest.mark.parametrize("order", [("a", "a#1"), ("a#1", "x", "y", "a")])
def test_a_document_with_the_name_of_a_passage_is_told_before_anything_is_compressed(
    tmp_path: Path, tiny_clara_dir: Path, order: tuple[str, ...]
):
    config = make_config(tmp_path, tiny_clara_dir, dict.fromkeys(order, LONG))
    with pytest.raises(DataError, match=r"(?s)name of a passage.*'a#1'"):
        compress(config)
    assert not Path(config.store).exists()
    report = compress(config.model_copy(update={"long_documents": "truncate"}))
    assert report.n_documents == len(order)


def test_a_name_that_only_looks_like_a_passage_is_fine(tmp_path: Path, tiny_clara_dir: Path):
    config = make_config(tmp_path, tiny_clara_dir, {"a#1": LONG, "b#2": SHORT})
    compress(config)
    store = MemoryStore.open(config.store)
    assert store.doc_ids([0, 1]) == ["a#1#1", "a#1#2"]
    assert store.n_parents == 2


def test_passages_may_share_at_most_half(tmp_path: Path, tiny_clara_dir: Path):
    with pytest.raises(ConfigError, match="at most 12"):
        make_config(tmp_path, tiny_clara_dir, {"a": LONG}, passage_overlap_tokens=13)
