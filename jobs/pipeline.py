"""Train, compress, train jointly and evaluate, as one job of a Ray cluster; takes what ``clara-dist pipeline`` takes.

ray job submit --working-dir . -- python jobs/pipeline.py --config pipeline.yaml --resume
"""

from __future__ import annotations

import sys

from clara_dist.cli import main

if __name__ == "__main__":
    main(["pipeline", *sys.argv[1:]])
