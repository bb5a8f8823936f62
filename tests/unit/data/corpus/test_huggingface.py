"""Datasets of the library `datasets`: saved ones, and those that it loads by an id. The hub itself is not asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from clara_dist.data.corpus import plan_units, read_unit
from clara_dist.data.documents import Document, FieldMap
from clara_dist.errors import DataError

ROWS = [{"id": f"d{i}", "text": f"text {i}", "page": {"title": f"T{i}", "n": i}} for i in range(23)]
FIELDS = FieldMap(title="page.title", metadata=(("n", "page.n"),))
DOCUMENTS = [Document(f"d{i}", f"T{i}", f"text {i}", {"n": i}) for i in range(23)]


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def documents(corpus: Any, **options: Any) -> list[Any]:
    return [item for unit in plan_units(corpus, fields=FIELDS, **options) for item in read_unit(unit)]


@pytest.mark.parametrize("rows_per_unit", [1, 5, 100])
def test_a_saved_dataset_is_its_shards_in_order(tmp_path: Path, rows_per_unit: int) -> None:
    dataset = datasets.Dataset.from_list(ROWS)
    dataset.save_to_disk(tmp_path / "saved", num_shards=3)
    assert documents(tmp_path / "saved", rows_per_unit=rows_per_unit) == DOCUMENTS
    assert documents(tmp_path / "saved", format="huggingface") == DOCUMENTS
    assert documents(sorted((tmp_path / "saved").glob("*.arrow"))) == DOCUMENTS
    # A selection is saved as its rows.
    dataset.select([7, 3]).save_to_disk(tmp_path / "some")
    assert documents(tmp_path / "some") == [DOCUMENTS[7], DOCUMENTS[3]]


def test_splits_are_named_by_their_directories(tmp_path: Path) -> None:
    halves = {"train": datasets.Dataset.from_list(ROWS[:9]), "test": datasets.Dataset.from_list(ROWS[9:])}
    datasets.DatasetDict(halves).save_to_disk(tmp_path / "both")
    with pytest.raises(DataError, match=r"both has several splits\n  got: train, test"):
        plan_units(tmp_path / "both")
    assert documents(tmp_path / "both" / "test") == DOCUMENTS[9:]
    datasets.DatasetDict({"train": halves["train"]}).save_to_disk(tmp_path / "one")
    assert documents(tmp_path / "one") == DOCUMENTS[:9]
    (tmp_path / "one" / "dataset_dict.json").write_text("{}")
    with pytest.raises(DataError, match=r"dataset_dict\.json does not describe a dataset"):
        plan_units(tmp_path / "one")


def test_an_id_is_loaded_by_the_library_into_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, rows in (("train", ROWS[:9]), ("test", ROWS[9:])):
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "files" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = []
    load = datasets.load_dataset

    def from_files(name: str, config: str | None, **options: Any) -> Any:
        asked.append((name, config, options))
        return load(str(tmp_path / "files"))

    monkeypatch.setattr(datasets, "load_dataset", from_files)
    found = documents("hf://datasets/org/name@v1?config=plain&split=test", rows_per_unit=4)
    assert found == DOCUMENTS[9:]
    assert asked == [("org/name", "plain", {"revision": "v1"})]
    with pytest.raises(DataError, match=r"org/name has several splits\n  got: train, test"):
        plan_units("hf://datasets/org/name")
    with pytest.raises(DataError, match="org/name has no split dev"):
        plan_units("hf://datasets/org/name?split=dev")


@pytest.mark.parametrize("url", ["hf://datasets/", "hf://datasets/org/name?spilt=test"])
def test_a_malformed_id_is_told(url: str) -> None:
    with pytest.raises(DataError, match="names no dataset"):
        plan_units(url)


def test_a_dataset_that_cannot_be_loaded_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"cannot load the dataset .*empty"):
        plan_units(f"hf://datasets/{tmp_path / 'empty'}")


def test_a_damaged_arrow_file_is_a_data_error(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    (path,) = (tmp_path / "saved").glob("*.arrow")
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DataError, match=r"\.arrow is damaged, or no Arrow file"):
        plan_units(tmp_path / "saved")
