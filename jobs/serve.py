"""Serve a model and its store until the job is stopped; takes what ``clara-dist serve`` takes.

ray job submit --no-wait --working-dir . -- python jobs/serve.py --config serve.yaml host=0.0.0.0
"""

from __future__ import annotations

import sys

from clara_dist.cli import main

if __name__ == "__main__":
    main(["serve", *sys.argv[1:]])
