"""From a fresh clone to a running system, with nothing but Python: ``python3 jobs/bootstrap.py demo`` (or ``test``).

Standard library only, and readable by Pythons that are too old to run the project, so that they get a sentence instead
of a syntax error. It makes ``.venv`` in the clone, installs the project there with the versions of a constraints file,
and runs the command in it. A second run finds the environment up to date and starts at once.
"""

import argparse
import hashlib
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "clara-installed"
CONSTRAINTS = ROOT / "cluster" / "constraints-cpu.txt"
OLDEST = (3, 10)

CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
)
# Read by torch, tokenizers, the hub client and Ray in every process that is started from here.
QUIET_CPU = {
    "OMP_NUM_THREADS": "1",  # workers that contend for two cores were 5x slower with two threads each
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",  # the demo and the tests make everything they need
    "RAY_USAGE_STATS_ENABLED": "0",
}


def main() -> int:
    """Parse the command line, install if needed, run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--constraints",
        type=Path,
        default=Path(os.environ.get("CLARA_CONSTRAINTS", str(CONSTRAINTS))),
        help="pip constraints file, for example for a GPU build of torch (also: CLARA_CONSTRAINTS)",
    )
    parser.add_argument("command", choices=("demo", "test", "install"))
    parser.add_argument(
        "args", nargs=argparse.REMAINDER, help="for clara-dist demo, or for pytest (then without lint and types)"
    )
    options = parser.parse_args()
    install(options.constraints)
    if options.command == "install":
        say(f"ready: {VENV / 'bin' / 'clara-dist'}, or `source {VENV / 'bin' / 'activate'}`")
        return 0
    os.chdir(str(ROOT))
    environment = dict(QUIET_CPU, **os.environ)
    # What is started finds its companions (ray, ninja) on the path.
    environment["PATH"] = os.pathsep.join([str(PYTHON.parent), os.environ.get("PATH", os.defpath)])
    environment["VIRTUAL_ENV"] = str(VENV)
    if options.command == "demo":
        command = ["-m", "clara_dist.cli", "demo", *options.args]
    else:
        for check in () if options.args else CHECKS:
            say(" ".join(check))
            code = subprocess.call([str(PYTHON), "-m", *check], env=environment)
            if code:
                return code
        # Two at a time: most tests wait for processes that start, die or are waited for. A file's tests stay together,
        # for they share a cluster, and the folders with the longest come first.
        command = ["-m", "pytest", *(options.args or ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"])]
    say("clara-dist demo" if options.command == "demo" else "pytest")
    # Takes this process's place: signals reach it, and its exit code is ours.
    return os.execve(str(PYTHON), [str(PYTHON), *command], environment)


def install(constraints: Path) -> None:
    """Bring the environment up to date; nothing to do if it is already."""
    if not constraints.is_file():
        raise SystemExit(f"bootstrap: no constraints file {constraints}")
    wanted = fingerprint(constraints)
    if STAMP.is_file() and STAMP.read_text() == wanted and PYTHON.exists():
        return
    if not PYTHON.exists() or subprocess.call([str(PYTHON), "-c", "import pip"], stderr=subprocess.DEVNULL):
        make_environment()
    say(f"installing clara_dist and its dependencies with {constraints} (a few minutes the first time)")
    started = time.monotonic()
    STAMP.unlink(missing_ok=True)
    pip = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--constraint", str(constraints)]
    if not sys.stdout.isatty():
        pip.append("--quiet")
    code = subprocess.call([*pip, "--editable", f"{ROOT}[test]"])
    if code:
        raise SystemExit(f"bootstrap: pip failed (exit code {code}); its message is above")
    # Written last: an interrupted installation has no stamp and is taken up again.
    STAMP.write_text(wanted)
    say(f"installed in {time.monotonic() - started:.0f} s")


def fingerprint(constraints: Path) -> str:
    """Of all that decides the environment's content; the clone's place too, since the install points to it."""
    digest = hashlib.sha256(str(ROOT).encode())
    for path in (ROOT / "pyproject.toml", constraints):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def make_environment() -> None:
    """Create the virtual environment, anew if a broken one is there."""
    if any(importlib.util.find_spec(module) is None for module in ("venv", "ensurepip")):
        raise SystemExit(
            f"bootstrap: {sys.executable} cannot make virtual environments (module venv or ensurepip is missing).\n"
            "  Debian and Ubuntu: apt install python3-venv; or use another Python."
        )
    say("creating {} with Python {}.{}.{}".format(VENV, *sys.version_info[:3]))
    code = subprocess.call([sys.executable, "-m", "venv", "--clear", str(VENV)])
    if code:
        raise SystemExit(f"bootstrap: could not create {VENV} (exit code {code})")


def say(message: str) -> None:
    """Tell the user what happens now; flushed, so that it stands before the output of what is started."""
    print("bootstrap: " + message, flush=True)


if __name__ == "__main__":
    if sys.version_info < OLDEST:
        sys.exit("bootstrap: Python 3.10 or newer is needed; this is {}.{}.{}".format(*sys.version_info[:3]))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nbootstrap: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
