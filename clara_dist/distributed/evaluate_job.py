"""Evaluation on a Ray cluster: questions in pieces over workers, each with a model of its own; resumable."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from clara_dist.config.evaluate import EvaluateConfig
from clara_dist.data.qrels import read_judged
from clara_dist.data.questions import EvalQuestion, QuestionFile
from clara_dist.distributed.actor_pool import ActorPool, Mapper, map_serially
from clara_dist.distributed.evaluate_worker import Evaluator, Task
from clara_dist.distributed.paths import absolute, absolute_base, absolute_output
from clara_dist.distributed.progress import Progress
from clara_dist.distributed.resources import require_room
from clara_dist.distributed.session import cluster_has_gpus, connect
from clara_dist.distributed.visibility import require_visible
from clara_dist.errors import ConfigError
from clara_dist.evaluation import AnswerRecord, EvaluationReport
from clara_dist.evaluation.evaluate import Asked, survey
from clara_dist.evaluation.html import write_html
from clara_dist.evaluation.latency import percentiles
from clara_dist.evaluation.records import ANSWERS, RecordFiles, write_records
from clara_dist.store.manifest import read_manifest
from clara_dist.store.reader import MemoryStore
from clara_dist.store.storage import open_storage

PARTS = "parts"
LATENCY = "latency.json"
_SETTINGS = "settings.json"
_ALONE = "alone.json"
# Tasks, of 512 questions by default, that are given to workers at a time.
_WAVE = 256
# What decides neither a figure nor how questions are cut.
_WHERE = {"output", "resume", "workers", "device", "threads", "published", "latency_questions"}


def evaluate(config: EvaluateConfig, *, address: str | None = None, num_cpus: int | None = None) -> EvaluationReport:
    """Evaluate a model on a cluster.

    Args:
        config: What to evaluate.
        address: See `session.connect`.
        num_cpus: CPUs of a local Ray.

    Raises:
        DataError: The questions cannot be read, or name documents that the store lacks.
        FingerprintMismatchError: Another model wrote the store.
        ConfigError: ``output`` holds an unfinished evaluation of something else.
        ClusterError: There is no room for a worker, a node does not see the files, or a worker failed.
    """
    config = absolute_paths(config)
    with connect(address, num_cpus=num_cpus):
        uses_gpu = config.device == "cuda" or (config.device == "auto" and cluster_has_gpus())
        each = {"CPU": config.threads, "GPU": int(uses_gpu)}
        require_room(each, config.workers, "the evaluation")
        require_visible(inputs(config), None)
        pool = ActorPool(config.workers, num_cpus=each["CPU"], num_gpus=each["GPU"])
        return evaluate_on(pool, config, "cuda" if uses_gpu else "cpu")


def evaluate_model(config: EvaluateConfig, device: str = "cpu") -> EvaluationReport:
    """The evaluation in this process; knows no cluster."""
    return evaluate_on(map_serially, config, device)


def evaluate_on(pool: Mapper, config: EvaluateConfig, device: str) -> EvaluationReport:
    """The evaluation on whatever runs workers; raises as `evaluate` does.

    With an ``output``, neither questions nor records are held beyond those of `_WAVE` tasks.
    """
    questions = questions_of(config)
    asked = survey(questions, config.top_k)  # what cannot be evaluated is told before any worker starts
    output = None if config.output is None else Path(config.output)
    if output is not None and config.resume and _is_finished(output, config, asked):
        return _report(config, asked, RecordFiles((output / ANSWERS,)), None)
    parts = None if output is None else output / PARTS
    done = set() if parts is None else _resumed(parts, config, asked)
    records: dict[int, list[AnswerRecord]] = {}
    seconds: defaultdict[str, float] = defaultdict(float)
    n_asked = 0
    documents = None
    bar = Progress("questions", asked.n)
    bar.skip(sum(_n_questions(index, asked.n, config) for index in done))
    for wave in _waves(questions, config, done):
        indices, tasks = zip(*wave, strict=True)
        for position, piece in pool(Evaluator, {"config": config, "device": device}, tasks):
            index = indices[position]
            documents = piece.n_documents, piece.n_passages
            n = _n_questions(index, asked.n, config)
            n_asked += n
            for name, spent in piece.seconds.items():
                seconds[name] += spent
            if parts is None:
                records[index] = piece.records
            else:
                if piece.alone:
                    (parts / _ALONE).write_text(json.dumps(percentiles(piece.alone)), encoding="utf-8")
                write_records(piece.records, parts / f"{index:06d}.parquet")
            bar.add(n)
    if output is None or parts is None:
        return _report(config, asked, [r for index in sorted(records) for r in records[index]], documents)
    report = _report(config, asked, RecordFiles(tuple(sorted(parts.glob("*.parquet")))), documents)
    report.write(output)
    _write_latency(parts, seconds, n_asked)
    write_html(report, output / "report.html", latency_lines(config))
    (parts / _SETTINGS).replace(output / _SETTINGS)
    shutil.rmtree(parts)
    return replace(report, records=RecordFiles((output / ANSWERS,)))


def _waves(
    questions: Iterable[EvalQuestion], config: EvaluateConfig, done: Collection[int]
) -> Iterator[list[tuple[int, Task]]]:
    """What is left to do, numbered, some tasks at a time: a pool holds all that it is given."""
    rest = iter(questions)
    pieces = iter(lambda: tuple(islice(rest, config.questions_per_task)), ())
    left = (
        (index, Task(piece, 0 if index else config.latency_questions))
        for index, piece in enumerate(pieces)
        if index not in done
    )
    return iter(lambda: list(islice(left, _WAVE)), [])


def _n_questions(index: int, n: int, config: EvaluateConfig) -> int:
    return min(config.questions_per_task, n - index * config.questions_per_task)


def _report(
    config: EvaluateConfig,
    asked: Asked,
    records: Sequence[AnswerRecord] | RecordFiles,
    documents: tuple[int, int] | None,
) -> EvaluationReport:
    """The report of all records; ``documents`` as `Piece` counts them, None: look them up."""
    if documents is None:
        store = MemoryStore.open(config.store, config.store_version)
        documents = store.n_parents, store.n_documents
    facts = asked.facts(*documents, config.top_k, config.max_tokens)
    return EvaluationReport.of(records, config.recall_at, **facts)


def _is_finished(output: Path, config: EvaluateConfig, asked: Asked) -> bool:
    record = output / _SETTINGS
    return record.exists() and record.read_text(encoding="utf-8") == _settings(config, asked)


def _write_latency(parts: Path, seconds: Mapping[str, float], n_asked: int) -> None:
    """In batches, as the evaluation asks (only what this run asked), and one at a time."""
    alone = parts / _ALONE
    text = json.dumps(
        {
            "ms_per_question": {name: 1e3 * spent / n_asked for name, spent in seconds.items()} if n_asked else {},
            "questions": n_asked,
            "alone": json.loads(alone.read_text(encoding="utf-8")) if alone.exists() else None,
        },
        indent=2,
    )
    (parts.parent / LATENCY).write_text(text + "\n", encoding="utf-8")


def latency_lines(config: EvaluateConfig) -> list[str]:
    """What a finished evaluation wrote of questions that were asked one at a time, for people."""
    if config.output is None:
        return []
    alone = json.loads((Path(config.output) / LATENCY).read_text(encoding="utf-8"))["alone"]
    if alone is None:
        return []
    steps = (f"{step} {' / '.join(f'{value:.1f}' for value in ms.values())}" for step, ms in alone["ms"].items())
    return [f"ms a question (p50 / p90 / p99 of {alone['questions']} asked one at a time): {'; '.join(steps)}"]


def questions_of(config: EvaluateConfig) -> Iterable[EvalQuestion]:
    """The questions, with the judgements of a file of their own where there is one (which are then all held).

    Raises:
        DataError: They cannot be read; without judgements this is found out when they are iterated over.
    """
    if config.qrels is not None:
        return read_judged(config.questions, config.qrels)
    return QuestionFile(config.questions, config.format)


def absolute_paths(config: EvaluateConfig) -> EvaluateConfig:
    """The configuration with local paths made absolute: workers have a working directory of their own."""
    names = ("model", "store", "questions", "qrels")
    local = {name: absolute(getattr(config, name)) for name in names if getattr(config, name) is not None}
    reasoners = {name: absolute(path) for name, path in config.reasoners.items()}
    if config.output is not None:
        local["output"] = absolute_output(config.output)
    base_model = absolute_base(config.model, config.base_model)
    return config.model_copy(update={**local, "reasoners": reasoners, "base_model": base_model})


def inputs(config: EvaluateConfig) -> list[str]:
    """What the nodes must see; the questions are read by the driver."""
    base = [config.base_model] if config.base_model and os.path.isdir(config.base_model) else []
    return [config.model, *base, *config.reasoners.values(), config.store]


def _resumed(parts: Path, config: EvaluateConfig, asked: Asked) -> set[int]:
    """The tasks that an earlier run of the same evaluation has finished; ``parts`` is made ready."""
    settings = _settings(config, asked)
    record = parts / _SETTINGS
    if config.resume and record.exists():
        if record.read_text(encoding="utf-8") != settings:
            raise ConfigError(
                "the unfinished evaluation there is of something else",
                got=f"other settings, questions, model or store than in {record}",
                hint="evaluate into another output, or without resume",
            )
        return {int(path.stem) for path in parts.glob("*.parquet")}
    shutil.rmtree(parts, ignore_errors=True)
    (parts.parent / _SETTINGS).unlink(missing_ok=True)  # what stands there is about to be replaced
    parts.mkdir(parents=True)
    record.write_text(settings, encoding="utf-8")
    return set()


def _settings(config: EvaluateConfig, asked: Asked) -> str:
    """All that decides the report, as text."""
    weights = hashlib.sha256()
    for model in filter(os.path.isdir, [config.model, *config.reasoners.values()]):
        for path in sorted(Path(model).rglob("*.safetensors")):
            weights.update(str(path.relative_to(model)).encode())
            weights.update(path.read_bytes())
    manifest = read_manifest(open_storage(config.store), config.store_version)
    identity = {
        "settings": config.model_dump(mode="json", exclude=_WHERE),
        "questions": asked.digest,
        "weights": weights.hexdigest(),
        "store": manifest.commit_id,
    }
    return json.dumps(identity, indent=2, sort_keys=True) + "\n"
