from __future__ import annotations

import json
import random
from pathlib import Path

from clara_dist.data.corpus import duplicate_rows, plan_units, read_unit, scan_unit
from clara_dist.data.documents import Document


def test_the_first_of_equal_ids_wins_over_files_and_units(tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_text(
        '{"id": "a", "text": "1"}\n{"id": "b", "text": "2"}\n{"id": "a", "text": "3"}\n{"text": "no id"}\n'
    )
    (tmp_path / "2.jsonl").write_text('{"id": "c", "text": "4"}\n{"id": 7, "text": "5"}\n{"id": "7", "text": "6"}\n')
    (tmp_path / "3.jsonl").write_text('{"id": "a", "text": "7"}\n')
    units = plan_units(str(tmp_path / "*.jsonl"), rows_per_unit=2)
    scans = [scan_unit(unit) for unit in units]
    assert [scan.n_documents for scan in scans] == [2, 1, 2, 1, 1]
    assert [[reject.line for reject in scan.rejects] for scan in scans] == [[], [4], [], [], []]
    duplicates = duplicate_rows(scans[::-1])  # the order in which the scans arrive does not matter
    assert {index: rows.tolist() for index, rows in duplicates.items()} == {1: [0], 3: [0], 4: [0]}
    kept = [
        item.text
        for unit in units
        for item in read_unit(unit, duplicates.get(unit.index, ()))
        if isinstance(item, Document)
    ]
    assert kept == ["1", "2", "4", "5"]


def test_duplicates_agree_with_a_set_on_random_corpora(tmp_path: Path) -> None:
    rng = random.Random(0)
    path = tmp_path / "corpus.jsonl"
    for _ in range(20):
        ids = [str(rng.randint(0, 40)) for _ in range(rng.randint(1, 80))]
        path.write_text("".join(json.dumps({"id": doc_id, "text": "t"}) + "\n" for doc_id in ids))
        units = plan_units(path, rows_per_unit=rng.randint(1, 20))
        duplicates = duplicate_rows([scan_unit(unit) for unit in units])
        kept = [
            item.doc_id
            for unit in units
            for item in read_unit(unit, duplicates.get(unit.index, ()))
            if isinstance(item, Document)
        ]
        assert kept == list(dict.fromkeys(ids))


def test_no_scans_no_documents_no_duplicates(tmp_path: Path) -> None:
    assert duplicate_rows([]) == {}
    (tmp_path / "corpus.jsonl").write_text("{}\n")
    scan = scan_unit(*plan_units(tmp_path / "corpus.jsonl"))
    assert scan.id_hashes.shape == (0, 2)
    assert duplicate_rows([scan]) == {}
