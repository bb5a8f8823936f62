"""Datasets of the Hugging Face library `datasets`, as the Arrow files that it keeps on disk."""

from __future__ import annotations

import json
import os
from typing import Any
from urllib.parse import parse_qsl

from clara_dist.errors import DataError

HUB_PREFIX = "hf://datasets/"
_SPLITS = "dataset_dict.json"
_STATE = "state.json"


def is_saved_dataset(folder: str) -> bool:
    """Whether ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` made the directory."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in (_SPLITS, _STATE))


def saved_files(folder: str) -> list[str]:
    """The Arrow files of a dataset that was saved, in its order.

    Raises:
        DataError: It has several splits, or its description cannot be read.
    """
    if os.path.isfile(os.path.join(folder, _SPLITS)):
        splits = _description(folder, _SPLITS, "splits")
        return saved_files(os.path.join(folder, _only(splits, folder, f"name its directory, such as {folder}/NAME")))
    return [os.path.join(folder, file["filename"]) for file in _description(folder, _STATE, "_data_files")]


def hub_files(url: str) -> list[str]:
    """The Arrow files of a dataset of the hub, downloaded and prepared here in the cache of `datasets`.

    Args:
        url: ``hf://datasets/ORG/NAME[@REVISION][?config=CONFIG&split=SPLIT]``.

    Raises:
        DataError: `datasets` is not installed, or cannot load it; it has several splits; or the URL is none.
    """
    name, _, options = url.removeprefix(HUB_PREFIX).partition("?")
    wanted = dict(parse_qsl(options))
    if not name or not wanted.keys() <= {"config", "split"}:
        raise DataError(f"{url} names no dataset", expected=f"{HUB_PREFIX}ORG/NAME[@REVISION][?config=C&split=S]")
    name, _, revision = name.partition("@")
    return prepared_files(name, config=wanted.get("config"), split=wanted.get("split"), revision=revision or None)


def prepared_files(
    name: str, *, config: str | None = None, split: str | None = None, revision: str | None = None
) -> list[str]:
    """The Arrow files that ``datasets.load_dataset`` makes. Code that comes with a dataset is never run.

    Args:
        name: Id on the hub, or a directory of files that `datasets` knows.
        config: One of its configurations.
        split: One of its splits; None: the only one.
        revision: Branch, tag or commit.

    Raises:
        DataError: As `hub_files`.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "reading a dataset by its id needs the library datasets",
            got=error,
            hint='pip install "clara-dist[datasets]"',
        ) from error
    try:
        found: Any = datasets.load_dataset(name, config, revision=revision)
    except Exception as error:  # it has no base class of its own, and lets those of many libraries through
        raise DataError(
            f"cannot load the dataset {name}",
            got=f"{type(error).__name__}: {error}",
            hint="check the id, the configuration, and HF_TOKEN if it is private",
        ) from error
    split = split if split in found else _only(list(found), name, "name one: hf://datasets/...?split=NAME", split)
    return [file["filename"] for file in found[split].cache_files]


def _only(splits: list[str], where: str, hint: str, wanted: str | None = None) -> str:
    if wanted is not None or len(splits) != 1:
        raise DataError(
            f"{where} has several splits" if wanted is None else f"{where} has no split {wanted}",
            got=", ".join(splits),
            hint=hint,
        )
    return splits[0]


def _description(folder: str, name: str, key: str) -> list[Any]:
    path = os.path.join(folder, name)
    try:
        with open(path, encoding="utf-8") as file:
            return list(json.load(file)[key])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{path} does not describe a dataset", got=f"{type(error).__name__}: {error}") from error
