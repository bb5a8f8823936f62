"""The directory of a run, on a disk or in an object store: which stages are done, and where everything is.

::

    RUN_DIR/run.yaml                  the resolved configuration
    RUN_DIR/log.jsonl                 every event
    RUN_DIR/<stage>/checkpoints/      of an unfinished or finished stage
    RUN_DIR/<stage>/model/            what the stage made (unless its ``output`` says otherwise)
    RUN_DIR/<stage>/done.json         written last: the stage's model and settings

Files that grow (the log, TensorBoard's) cannot be written to an object store: there they grow in a temporary directory
of the first worker, and are copied as whole objects every few seconds and when a checkpoint is written.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from clara_dist.config.training import TrainConfig
from clara_dist.errors import CheckpointError, TrainingError
from clara_dist.store import files
from clara_dist.store.storage import open_storage
from clara_dist.training.checkpoint import CheckpointFolder
from clara_dist.training.progress import LOG_FILE

_MIRROR_S = 5.0


class RunDirectory:
    """Paths and records of one run.

    Args:
        location: Directory or URL.
    """

    def __init__(self, location: str | Path) -> None:
        self.location = str(location)
        self.remote = files.is_url(self.location)
        self._storage = open_storage(self.location)
        self._mirrored: dict[Path, tuple[int, int]] = {}
        self._mirrored_at = float("-inf")

    @cached_property
    def root(self) -> Path:
        """Where files are written that grow: the directory itself, or the temporary one beside an object store."""
        return Path(self._scratch.name, "run") if self.remote else Path(self.location)

    @cached_property
    def _scratch(self) -> TemporaryDirectory[str]:
        return TemporaryDirectory(prefix="clara-run-")

    @property
    def holds_run(self) -> bool:
        """Whether a run has claimed it."""
        return self._storage.size_bytes("run.yaml") is not None

    def require_free(self, *, resume: bool) -> None:
        """Refuse a directory that holds a run already, unless ``resume`` was asked for.

        Raises:
            TrainingError: It does.
            StoreError: The object store cannot be reached, or refuses.
        """
        if self.holds_run and not resume:
            raise TrainingError(
                f"{self.location} holds a training run already",
                hint="pass --resume to go on with it, or choose another run_dir",
            )

    def begin(self, config: TrainConfig, *, resume: bool) -> None:
        """Claim the directory. Once per run, before any worker starts.

        Raises:
            TrainingError, StoreError: As `require_free`.
        """
        self.require_free(resume=resume)
        self._storage.publish("run.yaml", config.to_yaml().encode(), exclusive=False)

    def open_log(self) -> None:
        """Make ready for a log that goes on. For rank 0, before anything is logged."""
        self.root.mkdir(parents=True, exist_ok=True)
        if self.remote and self._storage.size_bytes(LOG_FILE) is not None:
            (self.root / LOG_FILE).write_bytes(self.read_log(0))

    def log_bytes(self) -> int:
        """How long the log is, as others see it."""
        return self._storage.size_bytes(LOG_FILE) or 0

    def read_log(self, start: int) -> bytes:
        """The log from a position on."""
        if self.log_bytes() <= start:
            return b""
        with self._storage.open(LOG_FILE) as source:
            source.seek(start)
            return bytes(source.read())

    def mirror(self, *, at_once: bool = True) -> None:
        """Copy what has grown to the object store; on a disk there is nothing to do.

        Args:
            at_once: False: not if it was done a few seconds ago.
        """
        now = time.monotonic()
        if not self.remote or (not at_once and now - self._mirrored_at < _MIRROR_S):
            return
        self._mirrored_at = now
        for path in sorted(self.root.rglob("*")):
            if path.is_file():
                stamp = (path.stat().st_size, path.stat().st_mtime_ns)
                if self._mirrored.get(path) != stamp:
                    self._storage.publish(path.relative_to(self.root).as_posix(), path.read_bytes(), exclusive=False)
                    self._mirrored[path] = stamp

    @staticmethod
    def stage_keys(config: TrainConfig) -> list[str]:
        """A name for each stage: its kind, numbered from the second of a kind on."""
        seen: Counter[str] = Counter()
        keys = []
        for stage in config.stages:
            seen[stage.stage] += 1
            keys.append(stage.stage if seen[stage.stage] == 1 else f"{stage.stage}-{seen[stage.stage]}")
        return keys

    def checkpoints(self, key: str) -> CheckpointFolder:
        return CheckpointFolder(self._storage, f"{key}/checkpoints")

    def output(self, key: str, configured: str | None) -> str:
        """Directory or URL of the model that a stage makes."""
        return configured if configured is not None else files.join(self.location, key, "model")

    @contextmanager
    def writing(self, output: str) -> Iterator[Path]:
        """A place to write a model directory to; what was written gets to ``output`` when the block is done."""
        if not files.is_url(output):
            yield Path(output)
            return
        with TemporaryDirectory(prefix="clara-model-") as folder:
            yield Path(folder, "model")
            # Who finds config.json finds the rest.
            files.upload(Path(folder, "model"), output, last="config.json")

    def local_model(self, model: str) -> str:
        """A model directory that libraries can open: ``model`` itself, or what a URL holds, copied for this worker."""
        if not files.is_url(model):
            return model
        path = Path(self._copies.name, hashlib.sha256(model.encode()).hexdigest()[:16])
        if not path.exists():
            files.download(model, path)
        return str(path)

    @cached_property
    def _copies(self) -> TemporaryDirectory[str]:
        return TemporaryDirectory(prefix="clara-models-")

    def finished(self, key: str) -> dict[str, Any] | None:
        """``{"output", "settings"}`` of a finished stage, or None.

        Raises:
            CheckpointError: The stage is recorded as done, but what it made is gone.
        """
        record = f"{key}/done.json"
        if self._storage.size_bytes(record) is None:
            return None
        with self._storage.open(record) as source:
            done: dict[str, Any] = json.loads(source.read())
        if not files.is_folder(done["output"]):
            raise CheckpointError(
                f"stage {key} is finished, but its model is gone",
                got=f"no directory {done['output']}",
                hint=f"put it back, or delete {files.join(self.location, record)} to train the stage again",
            )
        return done

    def finish(self, key: str, output: str, settings: dict[str, Any]) -> None:
        """Record a stage as done. For rank 0."""
        text = json.dumps({"output": output, "settings": settings}, indent=2) + "\n"
        self._storage.publish(f"{key}/done.json", text.encode(), exclusive=False)
