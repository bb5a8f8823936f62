"""Synthesise training data from a corpus, as a job of a Ray cluster; takes what ``clara-dist synthesize`` takes.

ray job submit --working-dir . -- python jobs/synthesize.py --config synthesize.yaml workers=4
"""

from __future__ import annotations

import sys

from clara_dist.cli import main

if __name__ == "__main__":
    main(["synthesize", *sys.argv[1:]])
