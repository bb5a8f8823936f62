"""What a pod of cluster/kuberay has under ``/``, without Kubernetes: its paths, by a mount namespace."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from chaos_corpus import write_config
from kustomized import build

ROOT = Path(__file__).resolve().parents[1]
SMALL = ROOT / "cluster" / "kuberay" / "overlays" / "small"

# The machine's own tree with /app, /data and /etc/clara in it; nothing of the machine is written to, nothing has to be
# unmounted. $1: the pod's directory, $2: the repository; the rest is the command, which keeps the process id.
_SCRIPT = """
set -e
pod="$1" repository="$2" root="$1/root"
shift 2
mount -t tmpfs tmpfs "$root"
for each in /*; do
    if [ -L "$each" ]; then cp -P "$each" "$root$each"
    elif [ "$each" = /etc ]; then
        mkdir "$root/etc" "$root/host-etc"
        mount --rbind /etc "$root/host-etc"
        for file in /etc/*; do ln -s "/host-etc/${file#/etc/}" "$root/etc/"; done
    elif [ -d "$each" ]; then mkdir "$root$each"; mount --rbind "$each" "$root$each"
    fi
done
rm -f "$root/etc/clara"
mkdir -p "$root/app" "$root/data" "$root/etc/clara"
mount --bind "$repository" "$root/app"
mount --bind "$pod/data" "$root/data"
mount --bind "$pod/etc/clara" "$root/etc/clara"
exec chroot "$root" "$@"
"""
_NAMESPACES = ["unshare", "--user", "--map-root-user", "--mount"]


def may_mount() -> bool:
    """Whether this machine lets a test have mounts of its own; some containers do not."""
    try:
        return subprocess.run([*_NAMESPACES, "mount", "-t", "tmpfs", "tmpfs", "/tmp"], check=False).returncode == 0
    except FileNotFoundError:
        return False


def in_pod(pod: Path, command: list[str]) -> list[str]:
    """The command, to be run where ``pod / "data"`` is ``/data``, and so on."""
    (pod / "root").mkdir(exist_ok=True)
    return [*_NAMESPACES, "sh", "-c", _SCRIPT, "sh", str(pod), str(ROOT), *command]


def settings_of(overlay: Path) -> dict[str, str]:
    """The texts of the ConfigMap that pods have under ``/etc/clara``."""
    (settings,) = [each for each in build(overlay) if each["kind"] == "ConfigMap"]
    return dict(settings["data"])


def job_spec(name: str, overlay: Path = SMALL) -> dict[str, Any]:
    """The spec of a RayJob."""
    (job,) = [each for each in build(overlay) if (each["kind"], each["metadata"]["name"]) == ("RayJob", name)]
    return dict(job["spec"])


def fill(pod: Path, model: Path, n_documents: int) -> None:
    """Put a corpus, questions, examples and a model where the jobs' settings look for them."""
    data = pod / "data"
    for folder in ("corpora", "models", "stores"):
        (data / folder).mkdir(parents=True)
    write_config(data / "corpora", model, n_documents=n_documents, rows_per_shard=8, workers=1)
    (data / "models" / "instruct").symlink_to(model)
    rows = [{"question": f"rain {i}?", "answer": "x", "docs": ["a", "b"], "pos_index": [0]} for i in range(4)]
    (data / "corpora" / "joint.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    questions = {"question_id": "q", "question": "rain?", "answer": "x", "positives": ["d0001"]}
    (data / "corpora" / "questions.jsonl").write_text(json.dumps(questions) + "\n", encoding="utf-8")


def write_settings(pod: Path, texts: dict[str, str], **changes: dict[str, Any]) -> None:
    """Write what is mounted under ``/etc/clara``.

    Args:
        pod: The pod's directory.
        texts: By file name, as of `settings_of`.
        changes: By job, what an operator with a tiny corpus would change at the top of its file.
    """
    folder = pod / "etc" / "clara"
    folder.mkdir(parents=True)
    for name, text in texts.items():
        changed = yaml.safe_load(text) | changes.get(Path(name).stem, {})
        (folder / name).write_text(yaml.safe_dump(changed), encoding="utf-8")
