from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from clara_dist.data import streams
from clara_dist.data.corpus import plan_units, read_unit
from clara_dist.data.streams import KeptFile, open_bytes
from clara_dist.errors import DataError

CONTENT = b"".join(json.dumps({"id": i, "text": f"text {i}" + "." * 100}).encode() + b"\n" for i in range(30_000))


def zstd(content: bytes) -> bytes:
    return pa.compress(content, codec="zstd", asbytes=True)


def compressed(content: bytes, suffix: str) -> bytes:
    return {".gz": gzip.compress, ".zst": zstd, "": bytes}[suffix](content)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_stream_seeks_anywhere(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(compressed(CONTENT, suffix))
    rng = random.Random(0)
    with open_bytes(str(path)) as stream:
        for _ in range(20):
            start = rng.randrange(len(CONTENT))
            stream.seek(start)
            assert stream.tell() == start
            assert stream.read(5000) == CONTENT[start : start + 5000]
        stream.seek(len(CONTENT))
        assert stream.read(1) == b""


def test_zstd_is_known_by_its_bytes_and_may_have_several_frames(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(zstd(b"one\n") + zstd(b"two\n"))
    with open_bytes(str(path)) as stream:
        assert stream.readlines() == [b"one\n", b"two\n"]


@pytest.mark.parametrize("damage", ["not zstd", "cut short", "flipped"])
def test_a_damaged_zstd_file_is_a_data_error(tmp_path: Path, damage: str) -> None:
    whole = zstd(CONTENT)
    middle = len(whole) // 2
    content = {
        "not zstd": CONTENT,
        "cut short": whole[:-12],
        "flipped": whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
    }[damage]
    path = tmp_path / "rows.jsonl.zst"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"rows\.jsonl\.zst is damaged, or no zstd file"):
        plan_units(path)


def test_a_kept_file_is_decompressed_once_for_units_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl.zst"
    path.write_bytes(zstd(CONTENT))
    units = plan_units(path, rows_per_unit=1000)
    starts = []
    restart = streams._ZstdFile._restart

    def counted(stream: Any) -> None:
        starts.append(stream)
        restart(stream)

    monkeypatch.setattr(streams._ZstdFile, "_restart", counted)
    kept = KeptFile()
    # Of two workers each reads about every other unit.
    ids = [[item.doc_id for item in read_unit(unit, kept=kept)] for unit in units[::2]]
    assert ids == [[str(i) for i in range(1000 * n, 1000 * (n + 1))] for n in range(0, 30, 2)]
    assert len(starts) == 1
    # A retried unit that lies behind costs one start more, and gives the same.
    assert [item.doc_id for item in read_unit(units[3], kept=kept)] == [str(i) for i in range(3000, 4000)]
    assert len(starts) == 2
    assert [item.doc_id for item in read_unit(units[28], kept=KeptFile())] == ids[14]
    assert len(starts) == 3


def test_a_kept_file_is_opened_anew_after_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(CONTENT))
    first, second = plan_units(path, rows_per_unit=15_000)
    kept = KeptFile()
    path.write_bytes(gzip.compress(CONTENT)[:-20_000])
    with pytest.raises(DataError, match="is damaged"):
        list(read_unit(second, kept=kept))
    path.write_bytes(gzip.compress(CONTENT))
    assert len(list(read_unit(second, kept=kept))) == 15_000
    assert len(list(read_unit(first, kept=kept))) == 15_000
