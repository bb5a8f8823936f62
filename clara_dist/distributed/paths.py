"""Local paths made to mean the same in every worker: workers have working directories of their own."""

from __future__ import annotations

import json
import os
from pathlib import Path

from clara_dist.errors import ConfigError
from clara_dist.store.storage import is_url, local_path, refuse_credentials

# Ray's folder, on every node, of the working directories of jobs.
_UNPACKED = "working_dir_files"


def absolute(path: str) -> str:
    """A local path from the root; a URL stays as it is.

    Raises:
        StoreError: A URL carries credentials, which reports and manifests would repeat.
    """
    if not is_url(path):
        return os.path.abspath(local_path(path))
    refuse_credentials(path)
    return path


def absolute_output(path: str) -> str:
    """As `absolute`, for what a job writes.

    Raises:
        ConfigError: It would be in the copy of a working directory that Ray unpacked for a job, and deletes after it.
    """
    found = absolute(path)
    if not is_url(found) and _UNPACKED in Path(found).parts:
        raise ConfigError(
            "what the job writes would be deleted with its working directory",
            got=found,
            expected="a path from the root that all nodes see, or a URL",
            hint="a submitted job runs in a copy of the working directory; name another place in the configuration, or "
            "by an override",
        )
    return found


def absolute_base(model: str, base_model: str | None) -> str | None:
    """Where the base LLM of a model directory is, if that is a directory here.

    Everything else stays as it is: a hub id, a directory beside the model's, and a model whose ``config.json`` cannot
    be read, which is for the worker that loads it to tell. Reads without torch: a process that only deploys asks, too.

    Args:
        model: Model directory.
        base_model: The configuration's own word; None leaves it to the model's ``config.json``.
    """
    base = base_model
    if base is None:
        try:
            base = str(json.loads(Path(model, "config.json").read_bytes())["base_model"])
        except (OSError, ValueError, LookupError, TypeError):
            return None
    return os.path.abspath(base) if os.path.isdir(base) else base_model
