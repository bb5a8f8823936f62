"""Compression of a corpus on a Ray cluster.

``plan`` deterministic units -> ``scan`` them for bad rows and repeated ids -> list the rejects, and stop here if they
are too many -> compress each unit into one shard with a name of its own -> commit the manifest. A job that is killed
leaves the store's versions as they were; run again, it keeps the shards that are finished.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray

from clara_dist import __version__
from clara_dist.config.compress import CompressConfig
from clara_dist.data.corpus import CorpusUnit, UnitScan, corpus_fingerprint, duplicate_rows, plan_units
from clara_dist.data.documents import Reject
from clara_dist.distributed.actor_pool import ActorPool, Mapper
from clara_dist.distributed.compress_metrics import CompressMetrics
from clara_dist.distributed.compress_report import CompressReport, JobCosts
from clara_dist.distributed.compress_resume import finished_shards
from clara_dist.distributed.compress_scan import MetadataCheck, RejectLister, UnitScanner, UnitWork
from clara_dist.distributed.compress_workers import (
    ModelIdentity,
    ShardCompressor,
    ShardWork,
    identify_model,
    shard_name,
)
from clara_dist.distributed.paths import absolute, absolute_base
from clara_dist.distributed.progress import Progress
from clara_dist.distributed.resources import require_room, result_of
from clara_dist.distributed.session import cluster_has_gpus, connect
from clara_dist.distributed.stopping import stoppable
from clara_dist.distributed.visibility import require_visible
from clara_dist.errors import DataError, StoreError
from clara_dist.model.files import memory_shape, read_config
from clara_dist.store import files
from clara_dist.store.append import append_shards
from clara_dist.store.deletions import count_documents
from clara_dist.store.manifest import Manifest, ShardInfo, read_manifest, shard_file, versions
from clara_dist.store.storage import open_storage
from clara_dist.store.writer import commit


def compress(config: CompressConfig, *, address: str | None = None, num_cpus: int | None = None) -> CompressReport:
    """Run the job on a cluster.

    Args:
        config: What to do.
        address: See `session.connect`; None: ``config.address``.
        num_cpus: CPUs of a local Ray.

    Raises:
        DataError: The corpus cannot be read, or too many of its rows are bad.
        ModelError: The model cannot be loaded.
        StoreError: The store holds something else.
        ClusterError: A node does not see the files, or Ray failed beyond the retries.
    """
    config = absolute_paths(config)
    going_on = f"stopped; what is finished stays in {config.store}: the same command goes on from there"
    with connect(address or config.address, num_cpus=num_cpus), stoppable(going_on):
        uses_gpu = config.device == "cuda" or (config.device == "auto" and cluster_has_gpus())
        each = {"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker if uses_gpu else 0}
        require_room(each, 1, "a compressor")  # fewer than ``workers`` do the job as well
        units = plan_units(config.corpus, format=config.format, rows_per_unit=_rows_of_shard(config))
        require_visible(_inputs(config, units), config.store)
        # Loading takes about as long as scanning: the two run side by side.
        resources: dict[str, Any] = {"num_cpus": each["CPU"], "num_gpus": each["GPU"]}
        workers = config.workers
        identity = ray.remote(**resources)(identify_model).remote(config)
        return run(
            config,
            units,
            scan_on=ActorPool(workers.most, min_size=workers.least),
            # Two tasks: while the model works on one, the other is read before it or published after it.
            compress_on=ActorPool(workers.most, min_size=workers.least, concurrent_tasks=2, **resources),
            identify=lambda: result_of(identity, each, "the task that loads the model"),
            device="cuda" if uses_gpu else "cpu",
            metrics=CompressMetrics(),
        )


def run(
    config: CompressConfig,
    units: Sequence[CorpusUnit],
    *,
    scan_on: Mapper,
    compress_on: Mapper,
    identify: Callable[[], ModelIdentity],
    device: str = "cpu",
    metrics: CompressMetrics | None = None,
) -> CompressReport:
    """The job on any `Mapper`; see `compress`."""
    started = time.monotonic()
    costs = JobCosts(metrics)
    refuse = MetadataCheck(config.metadata_columns)
    with costs.phase("scan"):
        scans = _scan(units, scan_on, refuse)
        work = _plan(units, scans)
        rejects = _list_rejects(scans, work, scan_on, refuse)
    _write_rejects(config.rejects_path, rejects)
    n_rejected = sum(not reject.repeated for reject in rejects)
    n_documents = sum(scan.n_documents for scan in scans) - sum(len(w.duplicates) for w in work)
    _require_acceptable(config, n_documents, n_rejected)
    if metrics is not None:
        metrics.rejects(n_rejected)
    with costs.phase("load_model"):
        identity = identify()
    existing = _existing(config.store)
    tasks = _tasks(config, identity, scans, work)
    was_complete = existing is not None and _holds(existing, config, identity, tasks)
    if existing is not None and was_complete:
        manifest, n_kept, rate = existing, 0, None
    else:
        kept = finished_shards(config.store, identity.schema(config), [task.name for task in tasks], scan_on)
        n_kept = sum(info.documents for info in kept.values())
        progress = Progress("documents", n_documents)
        progress.note(n_rejects=n_rejected)
        progress.skip(n_kept)
        with costs.phase("compress"):
            made = _compress(config, identity, tasks, kept, compress_on, device, costs, progress)
        rate = progress.rate()
        infos = [_checked(task, (kept | made)[task.name]) for task in tasks]
        with costs.phase("commit"):
            manifest = _publish(config, identity, existing, infos, _writer_info(config, units, n_rejected, len(rejects) - n_rejected))
            was_complete = existing is not None and manifest.version == existing.version
    return CompressReport(
        store=config.store,
        version=manifest.version,
        n_documents=count_documents(open_storage(config.store), manifest),
        n_passages=manifest.n_documents,
        n_truncated=sum(shard.truncated for shard in manifest.shards),
        n_shards=len(manifest.shards),
        n_rejected=n_rejected,
        n_repeated=len(rejects) - n_rejected,
        n_kept=n_kept,
        rejects=config.rejects_path,
        was_complete=was_complete,
        n_tokens=costs.n_tokens,
        size_bytes=costs.size_bytes,
        seconds=time.monotonic() - started,
        seconds_by_phase=costs.seconds,
        documents_per_s=rate,
    )


def _scan(units: Sequence[CorpusUnit], scan_on: Mapper, refuse: MetadataCheck) -> list[UnitScan]:
    progress = Progress("rows scanned", sum(unit.n_rows for unit in units))
    scans: dict[int, UnitScan] = {}
    for index, scan in scan_on(UnitScanner, {"refuse": refuse}, units):
        scans[index] = scan
        progress.add(units[index].n_rows)
    return [scans[index] for index in range(len(units))]


def _plan(units: Sequence[CorpusUnit], scans: Sequence[UnitScan]) -> list[UnitWork]:
    duplicates = duplicate_rows(scans)
    return [UnitWork(unit, tuple(int(row) for row in duplicates.get(unit.index, ()))) for unit in units]


def _tasks(
    config: CompressConfig, identity: ModelIdentity, scans: Sequence[UnitScan], work: Sequence[UnitWork]
) -> list[ShardWork]:
    """One shard for each unit that has a document left, in corpus order."""
    tasks = []
    for scan, unit_work in zip(scans, work, strict=True):
        n_documents = scan.n_documents - len(unit_work.duplicates)
        if n_documents:
            name = shard_name(identity.fingerprint, config, unit_work)
            tasks.append(ShardWork(unit_work, name, n_documents))
    return tasks


def _list_rejects(
    scans: Sequence[UnitScan], work: Sequence[UnitWork], scan_on: Mapper, refuse: MetadataCheck
) -> list[Reject]:
    """All rejects in corpus order. Only the units that repeat a document are read again, for its line."""
    repeating = [w for w in work if w.duplicates]
    listed = scan_on(RejectLister, {"refuse": refuse}, repeating)
    found = {repeating[index].unit.index: rejects for index, rejects in listed}
    return [reject for scan in scans for reject in found.get(scan.index, scan.rejects)]


def _write_rejects(path: str, rejects: Sequence[Reject]) -> None:
    lines = [json.dumps(asdict(reject), ensure_ascii=False) + "\n" for reject in rejects]
    files.write(path, "".join(lines).encode())


def _require_acceptable(config: CompressConfig, n_documents: int, n_rejected: int) -> None:
    allowed = config.allowed_rejects(n_documents + n_rejected)
    if n_rejected > allowed:
        raise DataError(
            "too many rows of the corpus are bad; nothing was compressed",
            got=f"{n_rejected} of {n_documents + n_rejected} rows, listed in {config.rejects_path}",
            expected=f"at most {allowed} (max_rejects={config.max_rejects:g})",
            hint="correct the rows, or raise max_rejects",
        )
    if n_documents == 0:
        raise DataError(
            "the corpus has no good document", got=f"{n_rejected} bad rows, listed in {config.rejects_path}"
        )


def _existing(store: str) -> Manifest | None:
    storage = open_storage(store)
    return read_manifest(storage) if versions(storage) else None


def _holds(existing: Manifest, config: CompressConfig, identity: ModelIdentity, tasks: Sequence[ShardWork]) -> bool:
    """Whether the store's current version is what this job would write.

    Raises:
        StoreError: It is something else, and may not be replaced.
    """
    existing.fingerprint.require_match(identity.fingerprint, f"the store {config.store}", f"the model {config.model}")
    if existing.schema != identity.schema(config):
        raise StoreError(
            f"the store {config.store} has other metadata columns",
            got=dict(config.metadata_columns),
            expected=dict(existing.schema.metadata_columns),
            hint="name the same columns, or another store",
        )
    if config.append:
        return False  # what is there already, `append_shards` finds out
    if [shard.file for shard in existing.shards] == [shard_file(task.name) for task in tasks]:
        return True
    if not config.overwrite:
        raise StoreError(
            f"the store {config.store} holds another corpus, or the same one with other settings",
            got=f"version {existing.version}: {sum(shard.documents for shard in existing.shards)} documents",
            expected=f"{sum(task.n_documents for task in tasks)} documents in {len(tasks)} shards",
            hint="name another store, add to this one with --append, or let overwrite=true write a new version of it",
        )
    return False


def _publish(
    config: CompressConfig,
    identity: ModelIdentity,
    existing: Manifest | None,
    shards: Sequence[ShardInfo],
    writer_info: Mapping[str, object],
) -> Manifest:
    """Commit the shards as all of the store, or behind what it holds by now."""
    schema, fingerprint = identity.schema(config), identity.fingerprint
    if config.append:
        return append_shards(
            config.store, schema, fingerprint, shards, on_existing=config.on_existing, writer_info=writer_info
        )
    parent = None if existing is None else existing.version
    return commit(config.store, schema, fingerprint, shards, parent=parent, writer_info=writer_info)


def _compress(
    config: CompressConfig,
    identity: ModelIdentity,
    tasks: Sequence[ShardWork],
    kept: Mapping[str, ShardInfo],
    compress_on: Mapper,
    device: str,
    costs: JobCosts,
    progress: Progress,
) -> dict[str, ShardInfo]:
    """Make the shards that are missing."""
    missing = [task for task in tasks if task.name not in kept]
    made: dict[str, ShardInfo] = {}
    arguments = {"config": config, "identity": identity, "device": device}
    for index, shard in compress_on(ShardCompressor, arguments, missing):
        made[missing[index].name] = shard.info
        costs.shard(shard)
        progress.note(n_tokens=shard.cost.n_tokens if shard.cost else 0, size_bytes=shard.info.size_bytes)
        progress.add(missing[index].n_documents)
    return made


def _checked(task: ShardWork, info: ShardInfo) -> ShardInfo:
    if info.documents != task.n_documents:
        raise StoreError(f"the shard {info.file} lacks documents", got=info.documents, expected=task.n_documents)
    return info


def _writer_info(
    config: CompressConfig, units: Sequence[CorpusUnit], n_rejected: int, n_repeated: int
) -> dict[str, object]:
    return {
        "program": f"clara_dist {__version__}",
        "config": config.model_dump(mode="json"),
        "corpus": corpus_fingerprint(units),
        "n_rejected": n_rejected,
        "n_repeated": n_repeated,
    }


def _rows_of_shard(config: CompressConfig) -> int:
    n_memory_tokens, hidden_size = memory_shape(Path(config.model))
    return config.rows_of_shard(2 * n_memory_tokens * hidden_size, read_config(Path(config.model)).doc_max_tokens)


def absolute_paths(config: CompressConfig) -> CompressConfig:
    """The configuration with nothing left open: local paths absolute (workers have working directories of their own),
    the overlap of passages a number (it is part of the shards' names).
    """
    model = read_config(Path(config.model))  # the commonest mistake, told before anything starts
    return config.model_copy(
        update={
            "model": absolute(config.model),
            "base_model": absolute_base(config.model, config.base_model),
            "store": absolute(config.store),
            "rejects": absolute(config.rejects_path),
            "corpus": tuple(absolute(path) for path in config.corpus),
            "passage_overlap_tokens": config.overlap_tokens(model.doc_max_tokens),
        }
    )


def _inputs(config: CompressConfig, units: Sequence[CorpusUnit]) -> list[str]:
    """Local paths that workers read."""
    base = [config.base_model] if config.base_model and os.path.isdir(config.base_model) else []
    return [config.model, *base, *sorted({unit.path for unit in units})]
