"""Filters: what they let through, what they refuse, and what they cost."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clara_dist.errors import ClaraError, FilterError
from clara_dist.store import MemoryStore, StoreSchema, delete, parse_where
from clara_dist.store.expression import MAX_CHARACTERS, MAX_DEPTH, MAX_TESTS
from clara_dist.store.where import RowCache, Where
from tiny_stores import build_store, random_memory

COLUMNS = {"source": "string", "year": "int64", "score": "float64", "good": "bool", 'odd "name"': "string"}
SCHEMA = StoreSchema(2, 8, COLUMNS)
# Values of each column, and how a filter writes them. Every third row or so lacks a value.
VALUES: dict[str, dict[str, Any]] = {
    "source": {"'wiki'": "wiki", "'it''s'": "it's", "'Ünïcode ☃'": "Ünïcode ☃", "''": "", "'2024-01-31'": "2024-01-31"},
    "year": {"-1": -1, "0": 0, "+2020": 2020, "9223372036854775807": 2**63 - 1, "-9223372036854775808": -(2**63)},
    "score": {"0.5": 0.5, "-1e-3": -0.001, "2": 2.0, ".25": 0.25, "1E3": 1000.0},
    "good": {"true": True, "FALSE": False},
    'odd "name"': {"'a'": "a", "'B'": "B"},
}
NAMES = {name: name for name in COLUMNS} | {'odd "name"': '"odd ""name"""', "year": '"year"'}
N = 60


def random_rows(seed: int) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    return [{k: chance.choice(list(v.values())) for k, v in VALUES.items() if chance.random() < 0.7} for _ in range(N)]


METADATA = random_rows(0)
DELETED = [0, 7, 8, 31, 59]
LEFT = [i for i in range(N) if i not in DELETED]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> MemoryStore:
    path = tmp_path_factory.mktemp("where")
    build_store(path, random_memory(N), [7, 0, 24, 29], metadata=METADATA, metadata_columns=COLUMNS)
    delete(path, doc_ids=[f"doc-{i}" for i in DELETED])
    return MemoryStore.open(path)


def random_filter(chance: random.Random, depth: int) -> tuple[str, Any]:
    """An expression, and what it says of a row: True, False or None, worked out in Python."""
    if depth and chance.random() < 0.7:
        kind = chance.choice(["not", "and", "or"])
        if kind == "not":
            text, says = random_filter(chance, depth - 1)
            return f"nOt ({text})", lambda row: None if says(row) is None else not says(row)
        parts = [random_filter(chance, depth - 1) for _ in range(chance.randint(2, 3))]
        decisive = kind == "or"

        def combined(row: dict[str, Any]) -> bool | None:
            said = [says(row) for _, says in parts]
            return decisive if decisive in said else (None if None in said else not decisive)

        return f" {kind.upper()}\n".join(f"({text})" for text, _ in parts), combined
    return random_test(chance)


def random_test(chance: random.Random) -> tuple[str, Any]:
    column = chance.choice(list(COLUMNS))
    written = [chance.choice(list(VALUES[column])) for _ in range(2)]
    a, b = (VALUES[column][each] for each in written)
    tests: dict[str, Any] = {
        f"= {written[0]}": lambda value: value == a,
        f"!={written[0]}": lambda value: value != a,
        f"in ({written[0]}, {written[1]})": lambda value: value in (a, b),
        f"not in ({written[0]})": lambda value: value != a,
    }
    if column != "good":
        tests |= {
            f"<{written[0]}": lambda value: value < a,
            f"<= {written[0]}": lambda value: value <= a,
            f">{written[0]}": lambda value: value > a,
            f">= {written[0]}": lambda value: value >= a,
            f"between {written[0]} and {written[1]}": lambda value: a <= value <= b,
        }
    tests |= {"is null": None, "is NOT null": None}
    test = chance.choice(list(tests))
    if tests[test] is None:
        return f"{NAMES[column]} {test}", lambda row: (column in row) == ("NOT" in test)
    return f"{NAMES[column]} {test}", lambda row: tests[test](row[column]) if column in row else None


@pytest.mark.parametrize("seed", range(150))
def test_the_rows_are_those_that_python_finds(store: MemoryStore, seed: int) -> None:
    text, says = random_filter(random.Random(seed), seed % 5)
    expected = [row for row, i in enumerate(LEFT) if says(METADATA[i])]
    assert store.rows_where(text).tolist() == expected, text


def test_precedence_and_words() -> None:
    def condition(text: str) -> Any:
        return parse_where(text, SCHEMA).condition

    assert condition("year=1 or year=2 and not good=true") == condition("year=1 or (year=2 and (not (good=true)))")
    assert condition("((year = 1))") == condition("year=1") != condition("year=2")
    assert condition("year not in (1)") == condition("NOT year in (1)")
    assert condition("\tscore\n>=2 ") == condition("score >= 2.0")
    words = {"not": "int64", "null": "bool", "in.or": "int64", "Größe": "int64"}
    where = parse_where('"not" = 1 and "null" = false and in.or > 2 and Größe < 3', StoreSchema(1, 1, words))
    assert [name for name, _ in where.kinds] == ["Größe", "in.or", "not", "null"]
    assert where.arrow_columns[1] == "metadata.in.or"


def test_a_mapping_is_short_for_equality(store: MemoryStore) -> None:
    mapping = {"source": "wiki", "year": [0, 2020], "score": (2,)}
    assert (
        store.rows_where(mapping).tolist()
        == store.rows_where("source = 'wiki' and year in (0, 2020) and score = 2").tolist()
    )
    assert store.rows_where({}).tolist() == list(range(len(LEFT)))
    assert store.rows_where({"year": []}).tolist() == []
    assert len(store.rows_where({"year": list(range(20_000))})) == len(store.rows_where("year between 0 and 19999"))
    with pytest.raises(FilterError, match="an expression or a mapping"):
        store.rows_where(7)  # type: ignore[arg-type]


REFUSED = [
    ("colour = 'red'", r"no metadata column 'colour' to filter by at character 1\n.*year \(int64\)"),
    ("year = 1 and Year = 2", "'Year' to filter by at character 14"),
    ("year >= 'x'", r"'year' has a value of another type at character 9\n  got: 'x'\n  expected: int64"),
    ("year = 2.0", "got: 2.0\n  expected: int64"),
    ("year = 9223372036854775808", r"got: 9223372036854775808\n"),
    ("year in (1, true)", "at character 13\n  got: True\n  expected: int64"),
    ("source = 1", "got: 1\n  expected: string"),
    ("source = '\ud800'", r"got: '\\ud800'"),
    ("score < 1e999", "got: inf\n  expected: float64"),
    ("score = " + "9" * 400, "expected: float64"),
    ("good = 1", "got: 1\n  expected: bool"),
    ("good > false", "'good' is of a type without an order at character 6"),
    ("good between false and true", "without an order"),
    ("", "at character 1\n  got: its end"),
    ("source = wiki", r"at character 10\n  got: 'wiki'\n  expected: 'text', a number, true or false"),
    ('source = "wiki"', "text in single quotes"),
    ("source = 'wiki", "at character 10"),
    ("year == 1", "at character 7"),
    ("year = null", "at character 8\n  got: 'null'"),
    ("year in ()", "at character 10"),
    ("(year = 1", r"its end\n  expected: \)"),
    ("year = 1 year = 2", r"at character 10\n  got: 'year = 2'\n  expected: and, or, the end"),
    ("year = 1; drop", "at character 9"),
    ("__import__('os')", r"at character 11\n  got: \"\('os'\)\""),
    ("1 = 1", r"expected: \(, a column, not"),
    ("year = ٣", "at character 8"),
    ("year = 1" + " " * MAX_CHARACTERS, f"too long\n  got: {MAX_CHARACTERS + 8} characters"),
    ("not " * MAX_DEPTH + "year = 1", f"too deep\n  expected: at most {MAX_DEPTH} levels"),
    (" or ".join(["year = 1"] * (MAX_TESTS + 1)), f"got: {MAX_TESTS + 1} tests"),
    ("(year=1 and (year=2 or " * 20 + "year=3" + "))" * 20, "too deep"),
]


@pytest.mark.parametrize(("text", "said"), REFUSED)
def test_what_does_not_fit_is_named(text: str, said: str) -> None:
    with pytest.raises(FilterError, match=said) as caught:
        parse_where(text, SCHEMA)
    assert len(str(caught.value).encode()) < 500
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_the_longest_and_the_deepest_are_read(store: MemoryStore) -> None:
    assert len(store.rows_where("not " * (MAX_DEPTH - 2) + "not year = 0")) > 0
    alternatives = " or ".join(f"year = {i}" for i in range(MAX_TESTS))
    assert store.rows_where(alternatives).tolist() == store.rows_where(f"year between 0 and {MAX_TESTS - 1}").tolist()
    many = "year in (" + ",".join(["0"] * ((MAX_CHARACTERS - 10) // 2)) + ")"
    assert store.rows_where(many).tolist() == store.rows_where("year = 0").tolist()
    parentheses = "(" * 2000 + "year=0" + ")" * 2000
    assert store.rows_where(parentheses).tolist() == store.rows_where("year = 0").tolist()


def test_ten_thousand_broken_filters_raise_nothing_else(store: MemoryStore) -> None:
    chance = random.Random(1)
    pieces = [*NAMES.values(), *(text for values in VALUES.values() for text in values)]
    pieces += ["(", ")", ",", "=", "<", ">=", "!=", " and ", " or ", " not ", " in ", " is ", " null", " between ", "'"]
    pieces += ["\x00", "\ud83d", "☃", '"', "\\", "1e9999", "9" * 30, "%s", "{}", "--", "\u202e", "\n", "((", "not not "]
    read = 0
    for _ in range(10_000):
        text, _ = random_filter(chance, chance.randint(0, 2))
        for _ in range(chance.randint(0, 3)):
            start = chance.randrange(len(text) + 1)
            text = text[:start] + chance.choice(pieces) + text[start + chance.choice([0, 0, 1, 5]) :]
        if chance.random() < 0.2:
            text = "".join(chance.choice(pieces) for _ in range(chance.randint(0, 12)))
        try:
            where = parse_where(text, SCHEMA)
        except FilterError as error:
            str(error).encode()
        else:
            read += 1
            if not read % 10:
                store.rows_where(where)
    assert 2000 < read < 8000


def test_a_where_travels_and_is_checked_against_another_store() -> None:
    where = parse_where("year > 1 and good = true", SCHEMA)
    again = pickle.loads(pickle.dumps(where))
    assert (again, hash(again), again.text) == (where, hash(where), "year > 1 and good = true")
    assert parse_where(where, SCHEMA) is where
    with pytest.raises(FilterError, match="no metadata column 'good'"):
        parse_where(where, StoreSchema(2, 8, {"year": "int64"}))
    with pytest.raises(FilterError, match=r"another type of metadata column 'year'\n  got: int64\n  expected: string"):
        parse_where(where, StoreSchema(2, 8, {"year": "string", "good": "bool"}))


def test_equal_filters_are_worked_out_once(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[str] = []
    matches = Where.matches

    def counting(self: Where, batch: Any) -> np.ndarray:
        computed.append(self.text)
        return matches(self, batch)

    monkeypatch.setattr(Where, "matches", counting)
    fresh = MemoryStore.open(store.url, store.version)
    first = fresh.rows_where("year > -100")
    assert fresh.rows_where("( year > -100 )") is first
    assert computed == ["year > -100"] * len(fresh.shards)
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1
    for bound in range(8):
        fresh.rows_where(f"year > {bound}")
    assert fresh.rows_where("year > -100") is not first


def test_the_rows_that_are_kept_have_a_bound() -> None:
    def where(number: int) -> Where:
        return parse_where(f"year = {number}", SCHEMA)

    cache = RowCache(max_filters=3, max_bytes=100)
    for number in range(4):
        cache.put(where(number), np.arange(2))
    assert [cache.get(where(number)) is not None for number in range(4)] == [False, True, True, True]
    cache.put(where(9), np.arange(9))  # 72 of 100 bytes: two more of 16 do not fit, the one used longest ago goes
    assert [cache.get(where(number)) is not None for number in (1, 2, 3, 9)] == [False, False, True, True]
    cache.put(where(10), np.arange(13))
    assert [cache.get(where(number)) is not None for number in (3, 9, 10)] == [True, True, False]


def test_documents_are_deleted_by_an_expression(tmp_path: Path) -> None:
    build_store(tmp_path, random_memory(N), [30, 30], metadata=METADATA, metadata_columns=COLUMNS)
    before = MemoryStore.open(tmp_path)
    rows = before.rows_where("score >= 0.25 or good is null")
    report = delete(tmp_path, where="score >= 0.25 or good is null")
    assert report.n_deleted == len(rows) > 10
    after = MemoryStore.open(tmp_path)
    assert len(after.rows_where("score >= 0.25 or good is null")) == 0
    assert after.doc_ids(np.arange(len(after))) == before.doc_ids(np.setdiff1d(np.arange(N), rows))
    for where in ("", {}, None):
        with pytest.raises(ClaraError, match="either ids or a filter"):
            delete(tmp_path, where=where)
    build_store(tmp_path / "none", random_memory(0), [], metadata_columns={"year": "int64"})
    with pytest.raises(FilterError, match="'x'"):
        delete(tmp_path / "none", where="x = 1")
