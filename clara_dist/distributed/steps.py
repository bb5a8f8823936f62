"""Long jobs one after the other; what is finished is recorded and skipped when they are run again."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from clara_dist.errors import ConfigError

RECORD_FILE = "steps.json"


@dataclass(frozen=True)
class Step:
    """One job. ``work`` leaves its results in files; if it is stopped, it can be called again."""

    name: str
    title: str
    work: Callable[[], object]


def run_steps(steps: Sequence[Step], run_dir: str | Path, *, settings: str, resume: bool) -> dict[str, float]:
    """Run the steps that are not finished yet, and print what happens and how long it takes.

    Args:
        steps: In order; names are unique.
        run_dir: Holds the record of finished steps.
        settings: Text of all that decides the results; a record of other settings is refused.
        resume: Go on from a record. Without it there must be none.

    Returns:
        Seconds of every step, those of earlier runs included.

    Raises:
        ConfigError: A record is there and ``resume`` was not asked for, or it is of other settings.
    """
    record = Path(run_dir) / RECORD_FILE
    identity = _identity(settings)
    seconds = finished_steps(run_dir, settings=settings, resume=resume)
    _write(record, {"settings": identity, "seconds": seconds})
    for number, step in enumerate(steps, 1):
        if step.name in seconds:
            print(f"[{number}/{len(steps)}] {step.title}: finished earlier, in {seconds[step.name]:.0f} s", flush=True)
            continue
        print(f"[{number}/{len(steps)}] {step.title}", flush=True)
        started = time.monotonic()
        step.work()
        seconds[step.name] = time.monotonic() - started
        print(f"[{number}/{len(steps)}] done in {seconds[step.name]:.0f} s", flush=True)
        _write(record, {"settings": identity, "seconds": seconds})
    return seconds


def finished_steps(run_dir: str | Path, *, settings: str, resume: bool) -> dict[str, float]:
    """Seconds of the steps that earlier runs have finished, by name; arguments and errors are those of `run_steps`."""
    record = Path(run_dir) / RECORD_FILE
    if not record.exists():
        return {}
    if not resume:
        raise ConfigError(
            f"{record.parent} holds a run already", hint="go on with it by --resume, or choose another directory"
        )
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
        identity, seconds = known["settings"], {str(name): float(s) for name, s in known["seconds"].items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"{record} is damaged", got=error, hint="choose another directory") from error
    if identity != _identity(settings):
        raise ConfigError(
            f"{record.parent} holds a run with other settings", hint="repeat them, or choose another directory"
        )
    return seconds


def _identity(settings: str) -> str:
    return hashlib.sha256(settings.encode()).hexdigest()


def _write(record: Path, content: object) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    staging = record.with_suffix(".tmp")
    staging.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(staging, record)
