"""A training run on one worker: its stages, one after the other. Knows torch.distributed, and no cluster."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from clara_dist.config.model import ClaraConfig
from clara_dist.config.training import TrainConfig
from clara_dist.errors import ClaraError, StorageError
from clara_dist.retrieval.sharded import ShardedSearcher
from clara_dist.training.collectives import Group, current_group
from clara_dist.training.data import prepare_run
from clara_dist.training.progress import OnProgress, RunLog
from clara_dist.training.run_directory import RunDirectory
from clara_dist.training.stage_run import StageRun


def run(
    config: TrainConfig,
    *,
    resume: bool = False,
    on_progress: OnProgress | None = None,
    searchers: Mapping[str, ShardedSearcher] | None = None,
    data_is_prepared: bool = False,
) -> dict[str, str]:
    """Train all stages of a run on this worker. Every worker of the default process group calls it.

    Args:
        config: The run.
        resume: Go on where ``run_dir`` stopped: finished stages are skipped, an unfinished one continues from its last
            checkpoint as if it had not stopped.
        on_progress: Called on rank 0 for every event.
        searchers: By stage key, what searches the store for a joint stage; the workers themselves without one.
        data_is_prepared: Somebody called `prepare_run` for this start of the run; else the first worker does.

    Returns:
        Model directory of each stage, by stage key (``compression``, ``joint``, ``joint-2`` ..).

    Raises:
        TrainingError: The loss is not finite, nothing is trainable, or a role gets no gradient.
        CheckpointError: What is to be resumed is damaged, or belongs to other data or settings.
        DataError: As `prepare_run`.
    """
    torch.set_num_threads(config.threads_per_worker)
    _quiet_libraries()
    directory = RunDirectory(config.run_dir)
    group = current_group(config.use_gpu)
    if group.is_first:
        directory.begin(config, resume=resume)
        directory.open_log()
    group.barrier()
    log = RunLog(
        directory.root,
        active=group.is_first,
        tracker=config.tracker,
        on_progress=on_progress,
        name=Path(config.run_dir).name,
    )
    log.message(
        f"{group.world_size} training worker{'s' if group.world_size > 1 else ''} at work ({group.device.type})"
    )
    if group.is_first:
        directory.mirror()
    finished = False
    try:
        if not data_is_prepared:
            _prepare(config, group, log)
        outputs = _run_stages(config, directory, group, log, searchers or {})
        finished = True
        return outputs
    finally:
        log.close()
        if group.is_first:
            _mirror_at_end(directory, finished)


def _mirror_at_end(directory: RunDirectory, finished: bool) -> None:
    try:
        directory.mirror()
    except StorageError:
        # After an error of the run, that one is to be told: an unreachable store may be its mere consequence.
        if finished:
            raise


def _prepare(config: TrainConfig, group: Group, log: RunLog) -> None:
    """Prepare the data in the first worker; the others wait, and end if it fails."""
    failure: ClaraError | None = None
    if group.is_first:
        try:
            prepare_run(config, log.message)
        except ClaraError as error:
            failure = error
    group.raise_together(failure)


def _run_stages(
    config: TrainConfig,
    directory: RunDirectory,
    group: Group,
    log: RunLog,
    searchers: Mapping[str, ShardedSearcher],
) -> dict[str, str]:
    outputs: dict[str, str] = {}
    model = config.model
    source = model if isinstance(model, ClaraConfig) else directory.local_model(model)
    for key, stage in zip(directory.stage_keys(config), config.stages, strict=True):
        engine = stage.engine or config.engine
        outputs[key] = StageRun(key, stage, engine, directory, group, log, searchers.get(key)).train(source)
        if stage.stage != "base":
            source = directory.local_model(outputs[key])
    return outputs


def _quiet_libraries() -> None:
    """No progress bars of other libraries between our lines, and no warning from DeepSpeed that there is no GPU.

    transformers imports DeepSpeed when it saves a model, whatever the engine is.
    """
    transformers_logging.disable_progress_bar()
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
