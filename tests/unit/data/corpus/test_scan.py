from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import pytest

from clara_dist.data.corpus import CorpusUnit, UnitDuplicates, find_duplicates, plan_units, read_unit, scan_unit
from clara_dist.data.documents import Document


def texts(units: Sequence[CorpusUnit], duplicates: Mapping[int, UnitDuplicates]) -> list[str]:
    found = []
    for unit in units:
        losers = duplicates[unit.index].ordinals.tolist() if unit.index in duplicates else []
        found += [item.text for item in read_unit(unit, losers) if isinstance(item, Document)]
    return found


def test_the_first_of_equal_ids_wins_over_files_and_units(tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_text(
        '{"id": "a", "text": "1"}\n{"id": "b", "text": "2"}\n{"id": "a", "text": "3"}\n{"text": "no id"}\n'
    )
    (tmp_path / "2.jsonl").write_text('{"id": "c", "text": "4"}\n{"id": 7, "text": "5"}\n{"id": "7", "text": "6"}\n')
    (tmp_path / "3.jsonl").write_text('{"id": "a", "text": "7"}\n')
    units = plan_units(str(tmp_path / "*.jsonl"), rows_per_unit=2)
    scans = [scan_unit(unit) for unit in units]
    assert [scan.n_documents for scan in scans] == [2, 1, 2, 1, 1]
    assert [scan.n_rejected for scan in scans] == [0, 1, 0, 0, 0]
    assert [json.loads(line)["line"] for scan in scans for line in scan.rejects.splitlines()] == [4]
    duplicates = find_duplicates(scans[::-1])  # the order in which the scans arrive does not matter
    assert {index: found.ordinals.tolist() for index, found in duplicates.items()} == {1: [0], 3: [0], 4: [0]}
    assert texts(units, duplicates) == ["1", "2", "4", "5"]
    last = find_duplicates(scans, "last")
    assert {index: found.ordinals.tolist() for index, found in last.items()} == {0: [0], 1: [0], 2: [1]}
    assert texts(units, last) == ["2", "4", "6", "7"]


def test_a_loser_names_the_place_of_its_winner(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('\n{"id": "a", "text": "1"}\nbad\n{"id": "a", "text": "2"}\n\n{"id": "a", "text": "3"}\n')
    units = plan_units(path, rows_per_unit=4)
    scans = [scan_unit(unit) for unit in units]
    assert [None if scan.rows is None else scan.rows.tolist() for scan in scans] == [[1, 3], [1]]
    for keep, expected in (("first", {0: [(4, 2)], 1: [(6, 2)]}), ("last", {0: [(2, 6), (4, 6)]})):
        lines = {
            index: [
                (scans[index].number(units[index], loser), scans[unit].number(units[unit], winner))
                for loser, unit, winner in zip(found.ordinals, found.winner_units, found.winner_ordinals, strict=True)
            ]
            for index, found in find_duplicates(scans, keep).items()  # type: ignore[arg-type]
        }
        assert lines == expected


@pytest.mark.parametrize("keep", ["first", "last"])
def test_duplicates_agree_with_a_dictionary_on_random_corpora(tmp_path: Path, keep: Literal["first", "last"]) -> None:
    rng = random.Random(0)
    path = tmp_path / "corpus.jsonl"
    for _ in range(20):
        ids = [str(rng.randint(0, 40)) for _ in range(rng.randint(1, 80))]
        rows = list(enumerate(ids))
        path.write_text("".join(json.dumps({"id": doc_id, "text": str(i)}) + "\n" for i, doc_id in rows))
        units = plan_units(path, rows_per_unit=rng.randint(1, 20))
        duplicates = find_duplicates([scan_unit(unit) for unit in units], keep)
        winners = {doc_id: i for i, doc_id in (rows[::-1] if keep == "first" else rows)}
        assert texts(units, duplicates) == [str(i) for i in sorted(winners.values())]


def test_no_scans_no_documents_no_duplicates(tmp_path: Path) -> None:
    assert find_duplicates([]) == {}
    (tmp_path / "corpus.jsonl").write_text("{}\n")
    scan = scan_unit(*plan_units(tmp_path / "corpus.jsonl"))
    assert scan.id_hashes.shape == (0, 2)
    assert find_duplicates([scan]) == {}
