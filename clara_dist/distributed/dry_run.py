"""What a job would do, found out from here: ``--dry-run``.

Files are looked for, data is read and a model is held against its store, as the job does before it starts anything.
Nothing is written, and no Ray is asked: what only its nodes can tell (room, what they see) is not checked.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from pathlib import Path

from clara_dist.config.compress import CompressConfig
from clara_dist.config.evaluate import EvaluateConfig
from clara_dist.config.model import Quantization
from clara_dist.config.pipeline import PipelineConfig
from clara_dist.config.serve import ServeConfig
from clara_dist.config.training import TrainConfig
from clara_dist.data.corpus import CorpusUnit, plan_units
from clara_dist.data.documents import FieldMap
from clara_dist.distributed import compress_job, evaluate_job, serve_app
from clara_dist.distributed import pipeline as pipeline_job
from clara_dist.distributed.evaluate_worker import require_guest
from clara_dist.distributed.paths import absolute, absolute_base
from clara_dist.distributed.steps import finished_steps
from clara_dist.errors import ConfigError, DataError, StoreError
from clara_dist.evaluation.evaluate import survey
from clara_dist.model.files import fingerprint_fields, read_config
from clara_dist.store.fingerprint import Fingerprint
from clara_dist.store.index_manifest import read_index_manifest
from clara_dist.store.manifest import Manifest, read_manifest, versions
from clara_dist.store.storage import is_url, open_storage
from clara_dist.training.plan import measure, plan_run, table


def compress(config: CompressConfig) -> str:
    """The plan of a compression.

    Raises:
        DataError: The corpus cannot be read.
        ModelError: The model's files cannot be.
        StoreError: The store may not be written, or is another model's (`FingerprintMismatchError`).
    """
    config = compress_job.absolute_paths(config)
    own = _fingerprint(config)
    units = compress_job.corpus_units(config)
    require_writable(config.store)
    storage = open_storage(config.store)
    existing = read_manifest(storage) if versions(storage) else None
    if existing is not None:
        existing.fingerprint.require_match(own, f"the store {config.store}", f"the model {config.model}")
    device = "the cluster's GPUs, else CPUs" if config.device == "auto" else config.device
    return _rows(
        {
            "corpus": f"{_corpus(units)}, {len(units)} shards",
            "model": _model(config, own),
            "store": f"{config.store}: {_store(existing)}",
            "workers": f"{config.workers} on {device}, {config.cpus_per_worker:g} CPUs each",
            "rejects": config.rejects_path,
        }
    )


def evaluate(config: EvaluateConfig) -> str:
    """The plan of an evaluation.

    Raises:
        DataError: The questions cannot be read.
        ModelError: The model's files cannot be.
        StoreError: There is no such store, or another model wrote it (`FingerprintMismatchError`), or the output may
            not be written.
    """
    config = evaluate_job.absolute_paths(config)
    own = _fingerprint(config)
    manifest = _matching(config, own)
    for name in config.reasoners:
        require_guest(manifest.fingerprint, config, name)
    asked = survey(evaluate_job.questions_of(config), config.top_k)
    if config.output is not None:
        require_writable(config.output)
    return _rows(
        {
            "questions": f"{asked.n:,} in {config.questions}",
            "model": _model(config, own),
            "store": f"{config.store}: {_store(manifest)}",
            "output": config.output or "the table alone",
        }
    )


def serve(config: ServeConfig) -> str:
    """The plan of a server.

    Raises:
        ConfigError: Model or store is not there, the port is taken, or an API key is missing.
        ModelError: The model's files cannot be read.
        StoreError: There is no such store, or another model wrote it (`FingerprintMismatchError`), or it lacks the
            index that is required.
    """
    serve_app.require_startable(config)
    local = {"model": absolute(config.model), "store": absolute(config.store)}
    config = config.model_copy(update=local | {"base_model": absolute_base(config.model, config.base_model)})
    own = _fingerprint(config)
    manifest = _matching(config, own)
    index = None
    if config.index != "none":
        index = read_index_manifest(open_storage(config.store), manifest.version)
        if index is None and config.index == "required":
            raise StoreError(
                f"version {manifest.version} of the store {config.store} has no index",
                hint="make it with `clara-dist index build`, or serve with index=auto",
            )
    replicas = f"{config.engine_replicas} x {config.engine} ({config.engine_cpus:g} CPUs"
    return _rows(
        {
            "address": f"http://{config.host}:{config.port}",
            "model": _model(config, own),
            "store": f"{config.store}: {_store(manifest)}",
            "search": "exact" if index is None else "by the index, then exact",
            "engines": f"{replicas}, and {config.engine_gpus:g} GPUs where the cluster has any)",
            "retrievers": f"{config.retriever_replicas} x {config.retriever_cpus:g} CPUs",
        }
    )


def pipeline(config: PipelineConfig, *, resume: bool) -> str:
    """The plan of all four jobs; models and the store that the pipeline itself makes need not be there.

    Raises:
        ConfigError: The run directory holds a run, and ``resume`` was not asked for, or one with other settings.
        DataError: Training data, the corpus or the questions are not there, or a row is bad.
        ClaraError: What the plans of the single jobs raise.
    """
    finished = finished_steps(config.run_dir, settings=config.to_yaml(), resume=resume)
    require_writable(config.run_dir)
    plans = {
        "prepare": lambda: _training(config.prepare),
        "compress": lambda: _compression(config.compress),
        "joint": lambda: _training(config.planned_joint),
        "evaluate": lambda: _evaluation(config.evaluate),
    }
    lines = []
    steps = pipeline_job.steps(config, resume=resume)
    for number, step in enumerate(steps, 1):
        done = step.name in finished
        lines.append(f"[{number}/{len(steps)}] {step.title}{': finished earlier' if done else ''}")
        if not done:
            lines.append(plans[step.name]())
    return "\n".join(lines)


def require_writable(path: str) -> None:
    """Look whether a job might write there, without doing it.

    Raises:
        StoreError: A directory on the way is no directory, or not this user's to write; or the bucket does not answer.
    """
    if is_url(path):
        open_storage(path).list_files("")
        return
    place = Path(os.path.abspath(path))
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise StoreError(
            f"{place} cannot be written", got=f"{there} is no directory, or not writable", hint="choose another place"
        )


def _training(config: TrainConfig) -> str:
    missing = [stage.data for stage in config.stages if not is_url(stage.data) and not _matches(stage.data)]
    if missing:
        raise DataError("training data is not there", got=", ".join(missing))
    return table(plan_run(config, measure(config)))


def _compression(config: CompressConfig) -> str:
    if Path(config.model).is_dir():
        return compress(config)
    units = plan_units(config.corpus, format=config.format, fields=FieldMap.from_config(config))
    rows = {"corpus": _corpus(units), "model": f"{config.model}, which is made before", "store": config.store}
    return _rows(rows)


def _evaluation(config: EvaluateConfig) -> str:
    if Path(config.model).is_dir():
        return evaluate(config)
    asked = survey(evaluate_job.questions_of(config), config.top_k)
    rows = {"questions": f"{asked.n:,} in {config.questions}", "model": f"{config.model}, which is made before"}
    return _rows(rows | {"output": str(config.output)})


def _matches(pattern: str) -> bool:
    return next(glob.iglob(pattern, recursive=True), None) is not None


def _fingerprint(config: CompressConfig | EvaluateConfig | ServeConfig) -> Fingerprint:
    quantization: Quantization | None = config.quantization
    model = Path(config.model)
    return Fingerprint(fingerprint_fields(model, base_model=config.base_model, quantization=quantization))


def _matching(config: EvaluateConfig | ServeConfig, own: Fingerprint) -> Manifest:
    """What the store holds, once it is known to be this model's."""
    manifest = read_manifest(open_storage(config.store), config.store_version)
    manifest.fingerprint.require_match(own, f"the store {config.store}", f"the model {config.model}")
    if not manifest.n_documents:
        raise ConfigError(f"the store {config.store} is empty")
    return manifest


def _corpus(units: list[CorpusUnit]) -> str:
    n_files = len({unit.path for unit in units})
    return f"{sum(unit.n_rows for unit in units):,} rows of {n_files:,} file{'s' if n_files > 1 else ''}"


def _model(config: CompressConfig | EvaluateConfig | ServeConfig, own: Fingerprint) -> str:
    model = read_config(Path(config.model))
    texts = f"M {model.n_memory_tokens}, documents of {model.doc_max_tokens} tokens"
    return f"{config.model}: stage {model.stage}, {texts}, fingerprint {own.digest[:12]}"


def _store(manifest: Manifest | None) -> str:
    if manifest is None:
        return "new"
    rows = f"{manifest.n_documents:,} rows in {len(manifest.shards)} shards"
    return f"version {manifest.version} of this model, {rows}"


def _rows(rows: Mapping[str, str]) -> str:
    return "\n".join(f"{name:<11} {value}" for name, value in rows.items())
