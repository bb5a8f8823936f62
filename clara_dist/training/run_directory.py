"""The directory of a run: which stages are done, and where everything is.

::

    RUN_DIR/run.yaml                  the resolved configuration
    RUN_DIR/log.jsonl                 every event
    RUN_DIR/<stage>/checkpoints/      of an unfinished or finished stage
    RUN_DIR/<stage>/model/            what the stage made (unless its ``output`` says otherwise)
    RUN_DIR/<stage>/done.json         written last: the stage's model and settings
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from clara_dist.config.training import TrainConfig
from clara_dist.errors import CheckpointError, TrainingError


class RunDirectory:
    """Paths and records of one run."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def begin(self, config: TrainConfig, *, resume: bool) -> None:
        """Claim the directory. Once per run, before any worker starts.

        Raises:
            TrainingError: It holds a run already, and ``resume`` was not asked for.
        """
        record = self.root / "run.yaml"
        if record.exists() and not resume:
            raise TrainingError(
                f"{self.root} holds a training run already",
                hint="pass --resume to go on with it, or choose another run_dir",
            )
        self.root.mkdir(parents=True, exist_ok=True)
        record.write_text(config.to_yaml(), encoding="utf-8")

    @staticmethod
    def stage_keys(config: TrainConfig) -> list[str]:
        """A name for each stage: its kind, numbered from the second of a kind on."""
        seen: Counter[str] = Counter()
        keys = []
        for stage in config.stages:
            seen[stage.stage] += 1
            keys.append(stage.stage if seen[stage.stage] == 1 else f"{stage.stage}-{seen[stage.stage]}")
        return keys

    def checkpoints(self, key: str) -> Path:
        return self.root / key / "checkpoints"

    def output(self, key: str, configured: str | None) -> Path:
        return Path(configured) if configured is not None else self.root / key / "model"

    def finished(self, key: str) -> dict[str, Any] | None:
        """``{"output", "settings"}`` of a finished stage, or None.

        Raises:
            CheckpointError: The stage is recorded as done, but what it made is gone.
        """
        record = self.root / key / "done.json"
        if not record.exists():
            return None
        done: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        if not Path(done["output"]).is_dir():
            raise CheckpointError(
                f"stage {key} is finished, but its model is gone",
                got=f"no directory {done['output']}",
                hint=f"put it back, or delete {record} to train the stage again",
            )
        return done

    def finish(self, key: str, output: Path, settings: dict[str, Any]) -> None:
        """Record a stage as done. For rank 0."""
        record = self.root / key / "done.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        staging = record.with_suffix(".tmp")
        staging.write_text(json.dumps({"output": str(output), "settings": settings}, indent=2) + "\n", encoding="utf-8")
        os.replace(staging, record)
