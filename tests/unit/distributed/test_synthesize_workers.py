"""How limits are divided, and what a unit's file is named by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clara_dist.config.synthesize import SynthesizeConfig
from clara_dist.data.corpus import plan_units
from clara_dist.distributed.compress_scan import UnitWork
from clara_dist.distributed.synthesize_unit import (
    Entry,
    UnitFile,
    read_unit_file,
    read_unit_head,
    settings_fingerprint,
    unit_file_name,
)
from clara_dist.distributed.synthesize_workers import ApiKey, divide
from clara_dist.errors import DataError
from clara_dist.synthesis import Usage


def config(endpoint: dict[str, Any] | None = None, **settings: Any) -> SynthesizeConfig:
    values = {
        "corpus": ("c",),
        "output": "o",
        "endpoint": {"base_url": "http://h/v1", "model": "m", **(endpoint or {})},
    }
    return SynthesizeConfig.model_validate({**values, **settings})


@pytest.mark.parametrize(
    ("workers", "n_units", "endpoint", "n", "share"),
    [
        (1, 9, {"max_concurrency": 16, "requests_per_minute": 60}, 1, (16, 60, None)),
        (4, 9, {"max_concurrency": 16, "requests_per_minute": 60, "tokens_per_minute": 80000}, 4, (4, 15, 20000)),
        (4, 3, {"max_concurrency": 16}, 3, (5, None, None)),
        (8, 9, {"max_concurrency": 2}, 2, (1, None, None)),
        (8, 9, {"requests_per_minute": 3}, 3, (5, 1, None)),
        # A request with an answer of 2048 tokens must fit a share several times.
        (8, 9, {"tokens_per_minute": 20000}, 2, (8, None, 10000)),
        (8, 9, {"tokens_per_minute": 1000}, 1, (16, None, 1000)),
    ],
)
def test_shares_never_add_up_to_more_than_the_limits(
    workers: int, n_units: int, endpoint: dict[str, Any], n: int, share: tuple[Any, ...]
) -> None:
    shares = divide(config(endpoint, workers=workers), n_units)
    each = shares.endpoint
    assert shares.workers == n
    assert (each.max_concurrency, each.requests_per_minute, each.tokens_per_minute) == share
    # Enough documents for all requests, while one unit is at its end.
    assert shares.units_at_a_time == -(-each.max_concurrency // 4) + 1


def test_a_key_is_not_shown() -> None:
    assert "sk-1" not in repr(ApiKey("sk-1"))
    assert "sk-1" not in str({"key": ApiKey("sk-1")})


def test_the_name_follows_from_the_documents_and_what_is_asked(tmp_path: Path) -> None:
    corpus = tmp_path / "a.jsonl"
    corpus.write_text('{"id": "a", "text": "1"}\n{"id": "b", "text": "2"}\n')
    one, two = (UnitWork(unit) for unit in plan_units(corpus, rows_per_unit=1))
    corpus.rename(tmp_path / "b.jsonl")
    moved, _ = (UnitWork(unit) for unit in plan_units(tmp_path / "b.jsonl", rows_per_unit=1))
    names = {unit_file_name("f", one), unit_file_name("f", two), unit_file_name("g", one)}
    names.add(unit_file_name("f", UnitWork(one.unit, (0,))))
    assert len(names) == 4
    assert unit_file_name("f", moved) == unit_file_name("f", one)


def test_patience_may_change_and_the_writer_may_not() -> None:
    own = settings_fingerprint(config())
    same = [{"max_retries": 9}, {"max_tokens": 9}, {"base_url": "http://other/v1"}, {"json_mode": "json_object"}]
    assert {settings_fingerprint(config(endpoint)) for endpoint in same} == {own}
    assert settings_fingerprint(config(synthesis={"max_attempts": 9})) == own
    others = [config({"model": "n"}), config({"temperature": 0}), config(synthesis={"n_simple": 1})]
    others.append(config(synthesis={"check_prompt": "{document} {material}"}))
    assert own not in {settings_fingerprint(other) for other in others}


def test_a_file_of_a_unit_is_read_as_it_was_written(tmp_path: Path) -> None:
    row = {"data_type": "qa", "question": ["é?"], "answers": ["\u2028"], "docs": ["t"]}
    entries = {2: Entry("c", (), (), 0, "no answer"), 0: Entry("a", (row,), ("a fact",), 1, None)}
    usage = Usage(requests=7, prompt_tokens=5)
    path = tmp_path / "unit.jsonl"
    path.write_bytes(UnitFile(entries, usage).to_bytes())
    read = read_unit_file(str(path))
    assert (read.entries, read.usage) == (entries, usage)
    head = read_unit_head(str(path))
    assert (head.done, head.failed, head.usage) == ((0,), (2,), usage)
    assert [head.n_left(n) for n in (1, 2, 3, 4)] == [0, 1, 2, 3]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match="damaged"):
        read_unit_file(str(path))
