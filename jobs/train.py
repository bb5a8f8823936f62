"""Train the stages of a run, as a job of a Ray cluster; takes what ``clara-dist train`` takes.

ray job submit --working-dir . -- python jobs/train.py --config run.yaml --resume
"""

from __future__ import annotations

import sys

from clara_dist.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
