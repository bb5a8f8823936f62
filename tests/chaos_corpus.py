"""A corpus of many small shards, and stores compared row for row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from clara_dist.config.compress import CompressConfig
from clara_dist.data.corpus import plan_units
from clara_dist.distributed.actor_pool import map_serially
from clara_dist.distributed.compress_job import run
from clara_dist.distributed.compress_workers import identify_model
from clara_dist.store import MemoryStore, verify

WORDS = ["rain", "gauges", "on", "the", "island", "are", "emptied", "at", "nine", "lighthouse", "Cape"]


def write_config(folder: Path, model: Path, *, n_documents: int, rows_per_shard: int, workers: int) -> CompressConfig:
    """A job on a corpus of its own; two bad rows are in it, too."""
    rows = [
        {
            "doc_id": f"d{i:04}",
            "title": f"No. {i}",
            "text": " ".join(WORDS[i * j % 11] for j in range(1, i % 9 + 2)),
            "metadata": {"number": i},
        }
        for i in range(n_documents)
    ]
    lines = [json.dumps(row) for row in rows]
    lines[n_documents // 2 : 0] = [json.dumps(rows[7]), "{broken"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return CompressConfig(
        corpus=(str(folder / "corpus.jsonl"),),
        model=str(model),
        store=str(folder / "store"),
        metadata_columns={"number": "int64"},
        rows_per_shard=rows_per_shard,
        workers=workers,
        max_rejects=2,
        device="cpu",
    )


def undisturbed(config: CompressConfig, store: Path) -> list[dict[str, Any]]:
    """What the job gives when nothing dies: made in this process, one shard after the other."""
    config = config.model_copy(update={"store": str(store)})
    units = plan_units(config.corpus, format=config.format, rows_per_unit=config.rows_per_shard)
    run(config, units, scan_on=map_serially, compress_on=map_serially, identify=lambda: identify_model(config))
    return rows_of(store)


def rows_of(store: Path | str) -> list[dict[str, Any]]:
    """All rows in order, memories as their bits. The store is verified first."""
    report = verify(store)
    assert report.ok, report.problems
    opened = MemoryStore.open(store)
    documents = opened.documents(range(opened.n_documents))
    memories = opened.take_memory(np.arange(opened.n_documents))
    return [
        {"doc_id": d.doc_id, "title": d.title, "text": d.text, "metadata": d.metadata, "memory": memory.tobytes()}
        for d, memory in zip(documents, memories, strict=True)
    ]


def temporary_files(store: Path | str) -> list[str]:
    """Half-written files that killed writers left."""
    return sorted(str(path.relative_to(store)) for path in Path(store).rglob(".*.tmp"))


def compressors_below(pid: int) -> list[psutil.Process]:
    """The processes of Ray Data's actors among those that a raylet or a driver has started."""
    return [child for child in psutil.Process(pid).children(recursive=True) if _is_actor(child)]


def _is_actor(process: psutil.Process) -> bool:
    try:
        return process.name().startswith("ray::MapWorker") or "ray::MapWorker" in " ".join(process.cmdline()[:1])
    except psutil.NoSuchProcess:
        return False
