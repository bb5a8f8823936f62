"""The command line, ``clara-dist``: each command reads its options and calls one function of the package.

Nothing heavy is imported before a command runs, so ``--help`` answers at once.
"""
# ruff: isort: skip_file

from clara_dist.cli.base import app, main, resolve

# Imported for their commands, in the order in which `--help` lists them.
from clara_dist.cli import (  # noqa: F401
    demo,
    model,
    compress,
    data,
    synthesize,
    train,
    report,
    serve,
    evaluate,
    submit,
    diagnose,
    store,
    store_changes,
    index,
    plan,
    bench,
)

__all__ = ["app", "main", "resolve"]
