"""Synthesis of training data from a corpus, on a Ray cluster.

``plan`` deterministic units -> survey them for bad rows and repeated ids -> workers ask the endpoint, and write one
file for each unit, anew with every document that is finished -> all files become the output, in the order of the
corpus. A job that is killed, whichever of its processes it hits, has lost the documents under way and nothing else.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from clara_dist.config.synthesize import SynthesizeConfig
from clara_dist.data.corpus import CorpusUnit, plan_units, read_unit
from clara_dist.data.documents import Document, FieldMap
from clara_dist.distributed.actor_pool import ActorPool, Mapper, map_serially
from clara_dist.distributed.compress_survey import Survey, survey_corpus
from clara_dist.distributed.paths import absolute, absolute_output
from clara_dist.distributed.progress import Progress
from clara_dist.distributed.resources import require_room
from clara_dist.distributed.session import connect
from clara_dist.distributed.stopping import stoppable
from clara_dist.distributed.synthesize_report import SynthesizePlan, SynthesizeReport, gather
from clara_dist.distributed.synthesize_unit import (
    SynthesisWork,
    UnitHead,
    read_unit_head,
    settings_fingerprint,
    unit_file_name,
)
from clara_dist.distributed.synthesize_workers import ApiKey, Shares, UnitSynthesizer, divide
from clara_dist.distributed.visibility import require_visible
from clara_dist.errors import DataError, SynthesisError
from clara_dist.store import files
from clara_dist.store.storage import at_once, is_url, open_storage
from clara_dist.synthesis import Usage
from clara_dist.synthesis.client import read_api_key
from clara_dist.synthesis.estimate import Estimate, estimate
from clara_dist.synthesis.probe import require_endpoint

# Too few to end a job for, even where they are too many for a good end: the other documents may fare better.
_FAILURES_BY_CHANCE = 10
EndedBy = Literal["tokens", "failures"] | None


def synthesize(
    config: SynthesizeConfig, *, address: str | None = None, num_cpus: int | None = None
) -> SynthesizeReport:
    """Run the job on a cluster. What an earlier run has done is kept; its failures are tried again.

    Args:
        config: What to do.
        address: See `session.connect`; None: ``config.address``.
        num_cpus: CPUs of a local Ray.

    Raises:
        DataError: The corpus cannot be read, too many of its rows are bad, or the output is another's file.
        EndpointError: The endpoint cannot be worked with; what is finished is kept.
        SynthesisError: Too many documents failed; what is finished is kept, and in the output.
        ClusterError: A node does not see the files, or Ray failed beyond the retries.
    """
    config = absolute_paths(config)
    _require_own_output(config)
    key = ApiKey(read_api_key(config.endpoint, os.environ))
    require_endpoint(config.endpoint, os.environ)
    going_on = f"stopped; what is finished stays in {config.work_dir}: the same command goes on from there"

    def pool(shares: Shares) -> Mapper:
        return ActorPool(shares.workers, num_cpus=config.cpus_per_worker, concurrent_tasks=shares.units_at_a_time)

    with connect(address or config.address, num_cpus=num_cpus), stoppable(going_on):
        # All of them: a worker that never starts would leave its share of the limits unused.
        require_room({"CPU": config.cpus_per_worker}, config.workers, "the workers")
        units = _units(config)
        local = sorted({unit.path for unit in units if not is_url(unit.path)})
        require_visible(local, config.work_dir)
        return run(config, units, scan_on=ActorPool(config.workers), pool=pool, key=key)


def plan(config: SynthesizeConfig) -> SynthesizePlan:
    """What the job would do. Reads the corpus here, lists its bad rows, and asks the endpoint nothing.

    Raises:
        DataError: As `synthesize`.
    """
    config = absolute_paths(config)
    _require_own_output(config)
    survey = survey_corpus(config, _units(config), map_serially)
    tasks = _tasks(config, survey)
    heads = _heads(config, tasks)
    least, most, n_left = Estimate(), Estimate(), 0
    for task in tasks:
        head = heads.get(task.file, UnitHead())
        if not head.n_left(task.n_wanted):
            continue
        items = read_unit(task.work.unit, task.work.duplicates)
        documents = [item for item in items if isinstance(item, Document)][: task.n_wanted]
        for document in (document for i, document in enumerate(documents) if i not in head.done):
            n_left += 1
            least += estimate(config.synthesis, len(document.text), rounds=0)
            most += estimate(config.synthesis, len(document.text), rounds=config.synthesis.max_rounds)
    costs = [config.cost(total.prompt_tokens, total.completion_tokens) for total in (least, most)]
    both = None if costs[0] is None or costs[1] is None else (costs[0], costs[1])
    return SynthesizePlan(sum(t.n_wanted for t in tasks), n_left, survey.n_rejected, least, most, both)


def run(
    config: SynthesizeConfig,
    units: Sequence[CorpusUnit],
    *,
    scan_on: Mapper,
    pool: Callable[[Shares], Mapper],
    key: ApiKey,
) -> SynthesizeReport:
    """The job on any `Mapper`; see `synthesize`."""
    started = time.monotonic()
    survey = survey_corpus(config, units, scan_on)
    tasks = _tasks(config, survey)
    n_documents = sum(task.n_wanted for task in tasks)
    heads = _heads(config, tasks)
    left = [task for task in tasks if heads.get(task.file, UnitHead()).n_left(task.n_wanted)]
    n_kept = n_documents - sum(heads.get(task.file, UnitHead()).n_left(task.n_wanted) for task in left)
    progress = Progress("documents", n_documents)
    progress.note(n_rejects=survey.n_rejected)
    progress.skip(n_kept)
    spent = sum((head.usage for head in heads.values()), Usage())
    ended_by = _synthesize(config, left, pool, key, progress, spent)
    found = gather(config, tasks)
    report = SynthesizeReport(
        output=config.output,
        model=config.endpoint.model,
        n_documents=n_documents,
        n_done=found.n_done,
        n_kept=n_kept,
        n_failed=found.n_failed,
        n_uncovered=found.n_uncovered,
        n_rejected=survey.n_rejected,
        n_repeated=survey.n_repeated,
        rows=dict(sorted(found.rows.items())),
        usage=found.usage,
        cost=config.cost(found.usage.prompt_tokens, found.usage.completion_tokens),
        seconds=time.monotonic() - started,
        stopped=_told(config, ended_by, found.usage) if found.n_done + found.n_failed < n_documents else None,
        files={"failures": config.failures_path, "rejects": config.rejects_path, "work": config.work_dir},
    )
    files.write(config.summary_path, report.to_json().encode() + b"\n")
    _require_acceptable(config, report)
    return report


def _synthesize(
    config: SynthesizeConfig,
    left: Sequence[SynthesisWork],
    pool: Callable[[Shares], Mapper],
    key: ApiKey,
    progress: Progress,
    spent: Usage,
) -> EndedBy:
    """Do what is left; returns what ended that early, if anything did."""
    n_tokens = None if config.max_tokens_total is None else config.max_tokens_total - spent.total_tokens
    if not left:
        return None
    if n_tokens is not None and n_tokens <= 0:
        return "tokens"
    shares = divide(config, len(left))
    # A file, not a message: it reaches workers wherever they are, also those that are started only later.
    stop = f"stop-{uuid.uuid4().hex}"
    arguments = {
        "config": config,
        "endpoint": shares.endpoint,
        "key": key,
        "stop_file": files.join(config.work_dir, stop),
        "max_tokens": n_tokens and n_tokens / shares.workers,
    }
    ended_by: EndedBy = None
    hopeless = max(config.max_failures * progress.total, _FAILURES_BY_CHANCE)
    try:
        for _, made in pool(shares)(UnitSynthesizer, arguments, left):
            progress.note(n_tokens=made.usage.total_tokens, n_failures=made.n_failed)
            progress.add(made.n_done + made.n_failed)
            if ended_by is None and progress.n_failures > hopeless:
                ended_by = "failures"
                files.write(files.join(config.work_dir, stop), b"")
            elif ended_by is None and made.out_of_tokens:
                ended_by = "tokens"
    finally:
        open_storage(config.work_dir).delete(stop)
    return ended_by


def _told(config: SynthesizeConfig, ended_by: EndedBy, spent: Usage) -> str | None:
    if ended_by == "failures":
        return "stopped: too many documents failed, so the others were not begun"
    if ended_by == "tokens":
        return (
            f"stopped: {spent.total_tokens:,} tokens are spent, max_tokens_total is {config.max_tokens_total:,}; "
            "the same command with more of them goes on from here"
        )
    return None


def _require_acceptable(config: SynthesizeConfig, report: SynthesizeReport) -> None:
    if report.stopped is None and report.n_done + report.n_failed < report.n_documents:
        raise SynthesisError(
            "documents that were written are not in the files: another job wrote these at the same time",
            got=f"{report.n_done + report.n_failed} of {report.n_documents} documents",
            hint="see that no other job has this output, and run the command again",
        )
    if report.n_failed > config.max_failures * report.n_documents:
        raise SynthesisError(
            "too many documents failed; what was written is kept, and is in the output",
            got=f"{report.n_failed} of {report.n_documents} documents, listed in {config.failures_path}",
            expected=f"at most {config.max_failures:g} of them (max_failures)",
            hint="see the reasons there, and run the command again: it tries only these again",
        )


def _tasks(config: SynthesizeConfig, survey: Survey) -> list[SynthesisWork]:
    """The units that have documents, up to the last that is wanted, in the order of the corpus."""
    fingerprint = settings_fingerprint(config)
    tasks: list[SynthesisWork] = []
    n_left = survey.n_documents if config.max_documents is None else config.max_documents
    for work, n_documents in zip(survey.work, survey.documents, strict=True):
        n_wanted = min(n_documents, n_left)
        if n_wanted:
            tasks.append(SynthesisWork(work, unit_file_name(fingerprint, work), n_documents, n_wanted))
        n_left -= n_wanted
    return tasks


def _heads(config: SynthesizeConfig, tasks: Sequence[SynthesisWork]) -> Mapping[str, UnitHead]:
    """What earlier runs left, by the file's name."""
    there = set(open_storage(config.work_dir).list_files("units"))
    names = [task.file for task in tasks if task.file in there]
    folder = files.join(config.work_dir, "units")
    return dict(zip(names, at_once(lambda name: read_unit_head(files.join(folder, name)), names), strict=True))


def _units(config: SynthesizeConfig) -> list[CorpusUnit]:
    return plan_units(
        config.corpus,
        format=config.format,
        fields=FieldMap.from_config(config),
        rows_per_unit=config.rows_per_unit,
    )


def _require_own_output(config: SynthesizeConfig) -> None:
    if files.size_bytes(config.output) is not None and files.size_bytes(config.summary_path) is None:
        raise DataError(
            f"{config.output} is there already, and is not of this command",
            expected=f"no such file, or {config.summary_path} beside it",
            hint="choose another output",
        )


def absolute_paths(config: SynthesizeConfig) -> SynthesizeConfig:
    """The settings with local paths from the root: workers have working directories of their own."""
    return config.model_copy(
        update={
            "corpus": tuple(absolute(path) for path in config.corpus),
            "output": absolute_output(config.output),
            "rejects": absolute_output(config.rejects_path),
        }
    )
