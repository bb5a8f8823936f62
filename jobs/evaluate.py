"""Evaluate a model and its store, as a job of a Ray cluster; takes what ``clara-dist eval`` takes.

ray job submit --working-dir . -- python jobs/evaluate.py --config evaluate.yaml
"""

from __future__ import annotations

import sys

from clara_dist.cli import main

if __name__ == "__main__":
    main(["eval", *sys.argv[1:]])
