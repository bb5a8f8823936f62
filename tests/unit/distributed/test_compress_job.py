"""The compression job on the serial mapper: the same steps as on a cluster, without one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clara_dist.config.compress import CompressConfig
from clara_dist.data.corpus import plan_units
from clara_dist.distributed import compress_job
from clara_dist.distributed.actor_pool import map_serially
from clara_dist.distributed.compress_job import CompressReport, absolute_paths, run
from clara_dist.distributed.compress_workers import ShardCompressor, identify_model
from clara_dist.errors import DataError, FingerprintMismatchError, StoreError
from clara_dist.model.clara import ClaraModel
from clara_dist.store import MemoryStore, shard_names, verify

WORDS = ["rain", "gauges", "on", "the", "island", "are", "emptied", "at", "nine"]


def write_corpus(path: Path, n: int, first: int = 0) -> Path:
    rows = [
        {
            "doc_id": f"d{i:03}",
            "title": f"t{i}",
            "text": " ".join(WORDS[(i + j) % 9] for j in range(i % 7 + 1)),
            "metadata": {"split": ["train", "test"][i % 2]},
        }
        for i in range(first, first + n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def config(tmp_path: Path, tiny_clara_dir: Path) -> CompressConfig:
    return CompressConfig(
        corpus=(str(write_corpus(tmp_path / "corpus.jsonl", 25)),),
        model=str(tiny_clara_dir),
        store=str(tmp_path / "store"),
        rows_per_shard=4,
        metadata_columns={"split": "string"},
    )


def changed(config: CompressConfig, **changes: Any) -> CompressConfig:
    return CompressConfig(**{**config.model_dump(), **changes})


def compress(config: CompressConfig, compress_on: Callable[..., Any] = map_serially) -> CompressReport:
    units = plan_units(config.corpus, format=config.format, rows_per_unit=config.rows_per_shard)
    return run(config, units, scan_on=map_serially, compress_on=compress_on, identify=lambda: identify_model(config))


class Dies(Exception):
    """Stands for the end of the process."""


def dies_after(n: int) -> Callable[..., Any]:
    """A mapper that makes ``n`` shards, in reverse order, and then dies."""

    def mapper(
        worker: Callable[..., Any], arguments: Mapping[str, Any], tasks: Sequence[Any]
    ) -> Iterator[tuple[int, Any]]:
        for count, (index, result) in enumerate(map_serially(worker, arguments, tasks[::-1])):
            if count == n:
                raise Dies
            yield len(tasks) - 1 - index, result

    return mapper


def test_every_document_arrives_in_order_with_its_own_memory(config: CompressConfig, tiny_clara_dir: Path) -> None:
    report = compress(config)
    assert (report.n_documents, report.n_shards, report.n_rejected, report.was_complete) == (25, 7, 0, False)
    store = MemoryStore.open(config.store)
    documents = store.documents(range(25))
    rows = [json.loads(line) for line in Path(config.corpus[0]).read_text(encoding="utf-8").splitlines()]
    assert [{"doc_id": d.doc_id, "title": d.title, "text": d.text, "metadata": d.metadata} for d in documents] == rows
    assert store.rows_where({"split": ("test",)}).tolist() == list(range(1, 25, 2))
    assert verify(config.store).ok
    clara = ClaraModel.from_pretrained(tiny_clara_dir)
    from clara_dist.model.batch import TextBatch

    for row in (0, 13, 24):
        ids = clara.tokenizer.encode_text(rows[row]["text"]).ids
        alone = clara.encode("compressor", TextBatch.from_ids([ids], 0)).memory_BMD[0].detach().numpy()
        np.testing.assert_allclose(store.take_memory(np.array(row)), alone, rtol=2**-11, atol=1e-5)


def test_killed_job_leaves_no_version_and_is_resumed(config: CompressConfig) -> None:
    with pytest.raises(Dies):
        compress(config, dies_after(3))
    with pytest.raises(StoreError, match="no memory store"):
        MemoryStore.open(config.store)
    left = {path: path.stat().st_mtime_ns for path in Path(config.store, "shards").iterdir()}
    # The fourth shard was written, but its result never arrived.
    assert len(left) == 4
    report = compress(config)
    # The last unit has 1 document, the three before it 4 each.
    assert (report.n_documents, report.n_kept) == (25, 13)
    assert {path: path.stat().st_mtime_ns for path in left} == left
    assert MemoryStore.open(config.store).doc_ids(range(25)) == [f"d{i:03}" for i in range(25)]
    assert verify(config.store).ok


def test_damaged_leftover_is_made_again(config: CompressConfig) -> None:
    with pytest.raises(Dies):
        compress(config, dies_after(2))
    name = shard_names(config.store)[0]
    path = Path(config.store, "shards", f"{name}.arrow")
    path.write_bytes(path.read_bytes()[:-40])
    assert compress(config).n_documents == 25
    assert verify(config.store).ok


def test_complete_store_is_left_alone(config: CompressConfig) -> None:
    compress(config)
    files = {path: path.stat().st_mtime_ns for path in Path(config.store).rglob("*") if path.is_file()}

    def must_not_run(worker: Any, arguments: Any, tasks: Any) -> Iterator[Any]:
        raise AssertionError("nothing is left to compress")

    report = compress(config, must_not_run)
    assert (report.was_complete, report.version, report.n_documents) == (True, 1, 25)
    assert "complete already" in str(report)
    assert {path: path.stat().st_mtime_ns for path in Path(config.store).rglob("*") if path.is_file()} == files


def test_other_corpus_needs_overwrite_and_keeps_what_is_equal(config: CompressConfig) -> None:
    compress(config)
    write_corpus(Path(config.corpus[0]), 30)
    with pytest.raises(StoreError, match="holds another corpus"):
        compress(config)
    assert MemoryStore.open(config.store).n_documents == 25
    report = compress(changed(config, overwrite=True))
    assert (report.version, report.n_documents) == (2, 30)
    # Six units of four documents are the same as before.
    assert report.n_kept == 24
    assert MemoryStore.open(config.store, version=1).n_documents == 25


def test_other_model_is_refused_by_field(config: CompressConfig, tmp_path: Path) -> None:
    compress(config)
    clara = ClaraModel.from_pretrained(config.model)
    clara.memory_rows.data += 1
    clara.save_pretrained(tmp_path / "other")
    with pytest.raises(FingerprintMismatchError, match="differ in: memory_embeddings"):
        compress(changed(config, model=str(tmp_path / "other"), overwrite=True))


def test_other_metadata_columns_are_refused(config: CompressConfig) -> None:
    compress(config)
    with pytest.raises(StoreError, match="other metadata columns"):
        compress(changed(config, metadata_columns={}))


BAD_ROWS = [
    (2, '{"title": "no id", "text": "x"}', "missing doc_id"),
    (5, '{"doc_id": "e1", "text": "   "}', "text is only white space"),
    (7, '{"doc_id": "d001", "text": "again"}', "duplicate doc_id"),
    (9, '{"doc_id": "e2", "text": 5}', "text is a number"),
    (12, '{"doc_id": "e3", ', "invalid JSON"),
]


def write_bad_corpus(path: Path) -> None:
    lines = write_corpus(path, 10).read_text(encoding="utf-8").splitlines()
    for number, line, _ in BAD_ROWS:
        lines.insert(number - 1, line)
    path.write_bytes("\n".join(lines).encode() + b'\n{"doc_id": "e4", "text": "\xff"}\n')


def test_bad_rows_are_listed_by_line_before_anything_is_compressed(config: CompressConfig) -> None:
    write_bad_corpus(Path(config.corpus[0]))
    with pytest.raises(DataError, match=r"too many rows of the corpus are bad; nothing was done(.|\n)*6 of 16"):
        compress(config)
    assert not Path(config.store).exists()
    listed = [json.loads(line) for line in Path(f"{config.store}.rejects.jsonl").read_text("utf-8").splitlines()]
    expected = [*((number, reason) for number, _, reason in BAD_ROWS), (16, "invalid UTF-8")]
    assert [row["line"] for row in listed] == [number for number, _ in expected]
    for row, (_, reason) in zip(listed, expected, strict=True):
        assert reason in row["reason"]
        assert row["path"] == config.corpus[0]
    assert listed[2]["doc_id"] == "d001"


@pytest.mark.parametrize("max_rejects", [6, 0.4])
def test_good_rows_arrive_when_the_bad_ones_are_accepted(config: CompressConfig, max_rejects: float) -> None:
    write_bad_corpus(Path(config.corpus[0]))
    report = compress(changed(config, max_rejects=max_rejects))
    assert (report.n_documents, report.n_rejected) == (10, 6)
    store = MemoryStore.open(config.store)
    assert store.doc_ids(range(10)) == [f"d{i:03}" for i in range(10)]
    assert store.documents([1])[0].text != "again"


def test_metadata_that_does_not_fit_its_column_is_a_reject(config: CompressConfig, tmp_path: Path) -> None:
    values = ["1999", 7, 2**63, True, 2.5, None]
    rows = [{"doc_id": f"m{i}", "text": "rain", "metadata": {"year": value}} for i, value in enumerate(values)]
    rows += [rows[1], {"doc_id": "m9", "text": "rain"}]
    corpus = tmp_path / "years.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    years = changed(config, corpus=(str(corpus),), metadata_columns={"year": "int64"}, max_rejects=9)
    assert compress(years).n_rejected == 5
    listed = [json.loads(line) for line in Path(years.rejects_path).read_text(encoding="utf-8").splitlines()]
    assert [(reject["line"], reject["reason"]) for reject in listed] == [
        *((line, "metadata 'year' is no int64") for line in (1, 3, 4, 5)),
        (7, f"duplicate doc_id ({corpus}:2 is kept)"),
    ]
    store = MemoryStore.open(years.store)
    assert store.doc_ids(np.arange(len(store))) == ["m1", "m5", "m9"]
    assert store.rows_where({"year": (7,)}).tolist() == [0]


def test_repeated_texts_of_training_rows_are_no_defect(config: CompressConfig) -> None:
    rows = [{"question": "q", "docs": ["rain", "island"]}, {"question": "r", "docs": ["island", "gauges"]}]
    Path(config.corpus[0]).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    report = compress(changed(config, max_rejects=0, metadata_columns={}))
    assert (report.n_documents, report.n_rejected, report.n_repeated) == (3, 0, 1)
    assert [d.text for d in MemoryStore.open(config.store).documents(range(3))] == ["rain", "island", "gauges"]


def test_corpus_without_a_good_document(config: CompressConfig) -> None:
    Path(config.corpus[0]).write_text("{}\n", encoding="utf-8")
    with pytest.raises(DataError, match="no good document"):
        compress(changed(config, max_rejects=5))


def test_corpus_that_changes_between_scan_and_compression(config: CompressConfig) -> None:
    def changes_it(worker: Any, arguments: Any, tasks: Any) -> Iterator[tuple[int, Any]]:
        write_corpus(Path(config.corpus[0]), 25, first=100)
        return map_serially(worker, arguments, tasks)

    with pytest.raises(DataError, match="changed while it was being read"):
        compress(config, changes_it)


def test_worker_with_another_model_writes_nothing(config: CompressConfig, tmp_path: Path) -> None:
    identity = identify_model(config)
    clara = ClaraModel.from_pretrained(config.model)
    clara.memory_rows.data += 1
    clara.save_pretrained(tmp_path / "other")
    worker = ShardCompressor(changed(config, model=str(tmp_path / "other")), identity, "cpu")
    with pytest.raises(FingerprintMismatchError, match="the model that this worker sees"):
        _ = worker.compressor


def test_relative_paths_become_absolute_and_hub_ids_stay(
    config: CompressConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = absolute_paths(changed(config, corpus=("c/*.jsonl",), store="s", base_model="hub/base"))
    assert (found.corpus, found.store) == ((str(tmp_path / "c/*.jsonl"),), str(tmp_path / "s"))
    assert (found.rejects, found.base_model) == (str(tmp_path / "s.rejects.jsonl"), "hub/base")
    assert absolute_paths(changed(config, store="s3://bucket/s")).store == "s3://bucket/s"


def runs_every_task_twice(worker: Any, arguments: Any, tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """Two workers with a model each, as when one is lost before it can say what it has done."""
    first, second = worker(**arguments), worker(**arguments)
    for index, task in enumerate(tasks):
        made, found = first(task), second(task)
        assert (made.info, found.cost) == (found.info, None)
        yield index, found
    assert "compressor" not in vars(second), "the second one had nothing to compute"


def test_a_shard_whose_worker_was_lost_after_it_is_found(config: CompressConfig) -> None:
    report = compress(config, runs_every_task_twice)
    assert (report.n_documents, report.n_kept) == (25, 0)
    assert verify(config.store).ok
    assert not verify(config.store).unlisted_files


def test_shards_of_long_documents_are_as_large_as_others(config: CompressConfig, tmp_path: Path) -> None:
    """By rows alone, 40 documents of 22 passages each would be one shard of 880 rows."""
    text = " ".join(WORDS[j % 9] for j in range(500))
    rows = [json.dumps({"doc_id": f"d{i}", "text": text}) for i in range(40)]
    (tmp_path / "long.jsonl").write_text("\n".join(rows))
    config = changed(config, corpus=(str(tmp_path / "long.jsonl"),), rows_per_shard=None, shard_size_bytes=60_000)
    rows_per_unit, bytes_per_unit = config.shard_bounds(2 * 3 * 32, 24)
    units = plan_units(config.corpus, rows_per_unit=rows_per_unit, bytes_per_unit=bytes_per_unit)
    report = run(config, units, scan_on=map_serially, compress_on=map_serially, identify=lambda: identify_model(config))
    shards = MemoryStore.open(config.store).manifest.shards
    assert (report.n_documents, report.n_passages, sum(shard.rows for shard in shards)) == (40, 880, 880)
    assert all(config.shard_size_bytes / 2 < shard.size_bytes < 2 * config.shard_size_bytes for shard in shards[:-1])


def test_of_a_bucket_one_object_is_looked_for(config: CompressConfig) -> None:
    (unit,) = plan_units(config.corpus)
    paths = ["s3://a/1.jsonl", "s3://a/2.jsonl", "s3://b/1.jsonl", "/x/1.jsonl", "/x/2.jsonl"]
    seen = compress_job._inputs(config, [replace(unit, path=path) for path in paths])
    assert seen == [config.model, "/x/1.jsonl", "/x/2.jsonl", "s3://a/2.jsonl", "s3://b/1.jsonl"]
