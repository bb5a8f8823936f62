"""Compress a corpus, as a job of a Ray cluster; takes what ``clara-dist compress`` takes.

ray job submit --working-dir . -- python jobs/compress.py --config compress.yaml workers=8
"""

from __future__ import annotations

import sys

from clara_dist.cli import main

if __name__ == "__main__":
    main(["compress", *sys.argv[1:]])
