"""A disk that is full in the middle of a job: a real file system of one megabyte, mounted for the job alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from chaos_corpus import rows_of, undisturbed, write_config

# Two runs in a mount namespace of their own, so that nothing has to be unmounted; between them the filler is removed.
SCRIPT = """
mount -t tmpfs -o size=1m tmpfs "$DISK" || exit 99
head -c 950k /dev/zero > "$DISK/filler"
"$PYTHON" -c "$RUN" compress --config "$CONFIG"
echo "first run: exit code $?"
find "$DISK/store" -name '.*.tmp' -o -name '*.json' | sed 's/^/unexpected: /'
cp -r "$DISK/store" "$OUT/interrupted"
rm "$DISK/filler"
"$PYTHON" -c "$RUN" compress --config "$CONFIG"
echo "second run: exit code $?"
cp -r "$DISK/store" "$OUT/finished"
"""


def test_a_full_disk_stops_the_job_and_damages_nothing(tiny_clara_dir: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    config = write_config(tmp_path / "job", tiny_clara_dir, n_documents=90, rows_per_shard=3, workers=1)
    expected = undisturbed(config, tmp_path / "undisturbed")
    config = config.model_copy(update={"store": str(disk / "store"), "address": "local"})
    (tmp_path / "compress.yaml").write_text(config.to_yaml(), encoding="utf-8")
    environment = {
        **os.environ,
        "DISK": str(disk),
        "OUT": str(tmp_path),
        "CONFIG": str(tmp_path / "compress.yaml"),
        "PYTHON": sys.executable,
        "RUN": "from clara_dist.cli import main; main()",
    }
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "first run: exit code 1" in done.stdout, done.stderr
    assert f"error: disk full at {disk}/store/shards, " in done.stderr
    assert " bytes needed" in done.stderr
    assert "unexpected" not in done.stdout, done.stdout
    kept = {path.name: path.read_bytes() for path in (tmp_path / "interrupted/shards").iterdir()}
    assert 0 < len(kept) < 31
    assert "second run: exit code 0" in done.stdout, done.stderr
    finished = tmp_path / "finished"
    assert {name: (finished / "shards" / name).read_bytes() for name in kept} == kept
    assert rows_of(finished) == expected
