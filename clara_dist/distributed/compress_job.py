"""Compression of a corpus on a Ray cluster.

``plan`` deterministic units -> ``scan`` them for bad rows and repeated ids -> list the rejects, and stop here if they
are too many -> compress each unit into one shard with a name of its own -> commit the manifest. A job that is killed
leaves the store's versions as they were; run again, it keeps the shards that are finished. One that is asked to stop
(SIGTERM) finishes those that are under way first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from clara_dist import __version__
from clara_dist.config.compress import CompressConfig
from clara_dist.data.corpus import CorpusUnit, corpus_fingerprint, plan_units
from clara_dist.data.documents import FieldMap
from clara_dist.distributed.actor_pool import ActorPool, Mapper
from clara_dist.distributed.compress_append import require_new
from clara_dist.distributed.compress_metrics import CompressMetrics
from clara_dist.distributed.compress_report import CompressReport, JobCosts
from clara_dist.distributed.compress_resume import finished_shards
from clara_dist.distributed.compress_survey import Survey, survey_corpus
from clara_dist.distributed.compress_workers import (
    ModelIdentity,
    ShardCompressor,
    ShardWork,
    identify_model,
    shard_name,
)
from clara_dist.distributed.paths import absolute, absolute_base, absolute_output
from clara_dist.distributed.progress import Progress
from clara_dist.distributed.resources import require_room, result_of
from clara_dist.distributed.session import cluster_has_gpus, connect
from clara_dist.distributed.stopping import stoppable
from clara_dist.distributed.visibility import require_visible
from clara_dist.errors import StoreError
from clara_dist.model.files import memory_shape, read_config
from clara_dist.store.append import append_shards
from clara_dist.store.deletions import count_documents
from clara_dist.store.manifest import Manifest, ShardInfo, read_manifest, shard_file, versions
from clara_dist.store.storage import is_url, open_storage
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
    with connect(address or config.address, num_cpus=num_cpus), stoppable(going_on) as stop:
        uses_gpu = config.device == "cuda" or (config.device == "auto" and cluster_has_gpus())
        each = {"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker if uses_gpu else 0}
        require_room(each, 1, "a compressor")  # fewer than ``workers`` do the job as well
        units = corpus_units(config)
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
            compress_on=ActorPool(workers.most, min_size=workers.least, concurrent_tasks=2, stop=stop, **resources),
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
    with costs.phase("scan"):
        survey = survey_corpus(
            config,
            units,
            scan_on,
            columns=config.metadata_columns,
            passages=config.long_documents == "split",
            keep_hashes=config.append and config.on_existing == "error",
        )
    if metrics is not None:
        metrics.rejects(survey.n_rejected)
    with costs.phase("load_model"):
        identity = identify()
    existing = _existing(config.store)
    tasks = _tasks(config, identity, survey)
    was_complete = existing is not None and _holds(existing, config, identity, tasks)
    if existing is not None and was_complete:
        manifest, n_kept, rate = existing, 0, None
    else:
        if existing is not None and survey.id_hashes:
            require_new(config.store, tasks, [survey.id_hashes[task.work.unit.index] for task in tasks])
        kept = finished_shards(config.store, identity.schema(config), [task.name for task in tasks], scan_on)
        n_kept = sum(info.documents for info in kept.values())
        progress = Progress("documents", survey.n_documents)
        progress.note(n_rejects=survey.n_rejected)
        progress.skip(n_kept)
        with costs.phase("compress"):
            made = _compress(config, identity, tasks, kept, compress_on, device, costs, progress)
        rate = progress.rate()
        infos = [_checked(task, (kept | made)[task.name]) for task in tasks]
        with costs.phase("commit"):
            manifest = _publish(config, identity, existing, infos, _writer_info(config, units, survey))
            was_complete = existing is not None and manifest.version == existing.version
    return CompressReport(
        store=config.store,
        version=manifest.version,
        n_documents=count_documents(open_storage(config.store), manifest),
        n_passages=manifest.n_documents,
        n_truncated=sum(shard.truncated for shard in manifest.shards),
        n_shards=len(manifest.shards),
        n_rejected=survey.n_rejected,
        n_repeated=survey.n_repeated,
        n_kept=n_kept,
        rejects=config.rejects_path,
        was_complete=was_complete,
        n_tokens=costs.n_tokens,
        size_bytes=costs.size_bytes,
        seconds=time.monotonic() - started,
        seconds_by_phase=costs.seconds,
        documents_per_s=rate,
    )


def _tasks(config: CompressConfig, identity: ModelIdentity, survey: Survey) -> list[ShardWork]:
    """One shard for each unit that has a document left, in corpus order."""
    return [
        ShardWork(work, shard_name(identity.fingerprint, config, work), n_documents)
        for work, n_documents in zip(survey.work, survey.documents, strict=True)
        if n_documents
    ]


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
    # Documents that were deleted stay deleted, unless the store is to be written anew.
    is_whole = existing.deletions is None or not config.overwrite
    if is_whole and [shard.file for shard in existing.shards] == [shard_file(task.name) for task in tasks]:
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


def _writer_info(config: CompressConfig, units: Sequence[CorpusUnit], survey: Survey) -> dict[str, object]:
    return {
        "program": f"clara_dist {__version__}",
        "config": config.model_dump(mode="json"),
        "corpus": corpus_fingerprint(units),
        "n_rejected": survey.n_rejected,
        "n_repeated": survey.n_repeated,
    }


def corpus_units(config: CompressConfig) -> list[CorpusUnit]:
    """The corpus in the units that become shards. Reads every file once.

    Raises:
        DataError: As `plan_units`.
        ModelError: The model directory, whose memories' size decides that of the shards, is incomplete.
    """
    n_memory_tokens, hidden_size = memory_shape(Path(config.model))
    rows, size_bytes = config.shard_bounds(
        2 * n_memory_tokens * hidden_size, read_config(Path(config.model)).doc_max_tokens
    )
    return plan_units(
        config.corpus,
        format=config.format,
        fields=FieldMap.from_config(config, config.metadata_columns),
        rows_per_unit=rows,
        bytes_per_unit=size_bytes,
    )


def absolute_paths(config: CompressConfig) -> CompressConfig:
    """The configuration with nothing left open: local paths absolute, the overlap of passages a number.

    Workers have working directories of their own, and the overlap is part of the shards' names.
    """
    model = read_config(Path(config.model))  # the commonest mistake, told before anything starts
    return config.model_copy(
        update={
            "model": absolute(config.model),
            "base_model": absolute_base(config.model, config.base_model),
            "store": absolute_output(config.store),
            "rejects": absolute_output(config.rejects_path),
            "corpus": tuple(absolute(path) for path in config.corpus),
            "passage_overlap_tokens": config.overlap_tokens(model.doc_max_tokens),
        }
    )


def _inputs(config: CompressConfig, units: Sequence[CorpusUnit]) -> list[str]:
    """What every node must see. Of each bucket one object is enough, and asking for all would take hours."""
    base = [config.base_model] if config.base_model and os.path.isdir(config.base_model) else []
    paths = sorted({unit.path for unit in units})
    remote = {path.split("/")[2]: path for path in paths if is_url(path)}
    return [config.model, *base, *(path for path in paths if not is_url(path)), *remote.values()]
