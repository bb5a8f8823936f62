"""Examples laid out once: the same as read one by one, found by position, refused when their data was touched."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from clara_dist.config import StageConfig
from clara_dist.data import prepared
from clara_dist.data.examples import ExampleRow, ExamplesDigest, read_examples
from clara_dist.data.prepared import PreparedExamples, open_examples, prepare_examples
from clara_dist.errors import DataError

QA = {"data_type": "qa", "question": ["q1", "q2"], "answers": ["a1", "a2"], "docs": ["é text", "second"]}
PARAPHRASE = {"data_type": "paraphrase", "question": [""], "answers": ["p1", "p2", "p3"], "docs": ["x"]}
ANSWER = {**QA, "data_type": "answer", "question": ["q3"], "answers": ["a3"], "docs": ["y"]}


class Seen:
    """Counts the rows that are read."""

    def __init__(self) -> None:
        self.places: list[str] = []

    def add(self, place: str, row: ExampleRow | None) -> None:
        self.places.append(place)


def prepare(stage: StageConfig, folder: Path, seen: Seen | None = None, **settings: Any) -> PreparedExamples:
    seen = seen or Seen()
    return prepare_examples(
        stage, str(folder), settings=settings, observe=seen.add, report=lambda: {"rows": len(seen.places)}
    )


def instruct(path: Path, **fields: Any) -> StageConfig:
    return StageConfig(stage="instruct", data=str(path), steps=1, **fields)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (QA, PARAPHRASE, ANSWER)), encoding="utf-8")
    return path


@pytest.mark.parametrize("part_bytes", [1, 100, prepared._PART_BYTES])
def test_they_are_what_was_read_whatever_file_they_lie_in(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, part_bytes: int
) -> None:
    monkeypatch.setattr(prepared, "_PART_BYTES", part_bytes)
    prepare(instruct(data), tmp_path / "p")
    examples, expected = open_examples(str(tmp_path / "p")), read_examples(data, "instruct")
    assert len(list((tmp_path / "p").glob("*.arrow"))) == {1: 3, 100: 2}.get(part_bytes, 1)
    assert len(examples) == 6
    assert [examples[i] for i in (5, 0, 3, 1, 4, 2)] == [expected[i] for i in (5, 0, 3, 1, 4, 2)]
    assert list(examples) == expected
    assert examples[-1] == expected[-1]
    assert examples[1:3] == expected[1:3]
    with pytest.raises(IndexError):
        examples[6]
    digest = ExamplesDigest()
    digest.update(expected)
    assert examples.fingerprint == digest.hexdigest()


def test_joint_examples_keep_candidates_and_positives(tmp_path: Path) -> None:
    path = tmp_path / "joint.jsonl"
    path.write_text('{"question": "q", "answer": "a", "doc_ids": ["d1", "d2"], "pos_index": 1}\n' * 2)
    stage = StageConfig(stage="joint", data=str(path), steps=1, store="s")
    assert list(prepare(stage, tmp_path / "p")) == read_examples(path, "joint")


def test_untouched_data_is_read_once(tmp_path: Path, data: Path) -> None:
    seen, folder = Seen(), tmp_path / "p"
    first = prepare(instruct(data), folder, seen)
    assert seen.places == [f"{data}, line {i}" for i in (1, 2, 3)]
    assert prepare(instruct(data), folder, seen).report == {"rows": 3}
    assert len(seen.places) == 3

    # Touched, other settings of the reading, another verdict: read again. The same content has the same fingerprint.
    os.utime(data, (1, 1))
    assert prepare(instruct(data), folder, seen).fingerprint == first.fingerprint
    assert prepare(instruct(data, max_documents=1), folder, seen).fingerprint != first.fingerprint
    prepare(instruct(data, max_documents=1), folder, seen, top_k=2)
    assert len(seen.places) == 12


def test_changed_data_replaces_what_was_there(tmp_path: Path, data: Path) -> None:
    folder = tmp_path / "p"
    before = prepare(instruct(data), folder)
    data.write_text(json.dumps({**ANSWER, "answers": ["another"]}) + "\n")
    after = prepare(instruct(data), folder)
    assert [example.answer for example in after] == ["another"]
    assert after.fingerprint != before.fingerprint
    assert len(list(folder.iterdir())) == 2
    assert before[0].question == "q1"  # who had the old files mapped can go on reading them


def test_a_bad_row_or_verdict_leaves_nothing_to_be_read(tmp_path: Path, data: Path) -> None:
    with data.open("a") as file:
        file.write('{"data_type": "qa"}\n')
    with pytest.raises(DataError, match="line 4: missing docs"):
        prepare(instruct(data), tmp_path / "p")

    def refuse(place: str, row: Any) -> None:
        raise DataError("too long")

    with pytest.raises(DataError, match="too long"):
        prepare_examples(instruct(data), str(tmp_path / "p"), settings={}, observe=refuse, report=dict)
    with pytest.raises(DataError, match="there are no prepared examples"):
        open_examples(str(tmp_path / "p"))


def test_compressed_data_becomes_plain(tmp_path: Path, data: Path) -> None:
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(data.read_bytes()))
    assert list(prepare(instruct(packed), tmp_path / "p")) == read_examples(data, "instruct")


def test_a_cut_file_is_noticed(tmp_path: Path, data: Path) -> None:
    prepare(instruct(data), tmp_path / "p")
    (file,) = (tmp_path / "p").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(DataError, match="is damaged"):
        open_examples(str(tmp_path / "p"))


class Uncounted(Seen):
    def add(self, place: str, row: ExampleRow | None) -> None:
        pass


def peak_bytes(folder: Path, n_rows: int) -> int:
    """Of Python's memory, while rows of 2 kB are prepared and then read here and there."""
    data = folder / f"{n_rows}.jsonl"
    with data.open("w") as file:
        for i in range(n_rows):
            file.write(json.dumps({**ANSWER, "question": [f"q{i}"], "docs": [f"{i} " * 400]}) + "\n")
    tracemalloc.start()
    try:
        examples = prepare(instruct(data), folder / f"p{n_rows}", Uncounted())
        assert [examples[i].question for i in range(0, n_rows, 7)] == [f"q{i}" for i in range(0, n_rows, 7)]
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_ten_times_the_rows_take_no_more_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "_PART_BYTES", 100_000)
    peak_bytes(tmp_path, 60)  # what is imported and cached once
    few, many = peak_bytes(tmp_path, 200), peak_bytes(tmp_path, 2000)
    # Measured: 172 and 214 kB, of 0.3 and 3.2 MB of rows: a file of 100 kB costs 1.4 kB, whatever is in it.
    assert many < few + 100_000
