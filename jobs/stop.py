"""Ask every job of this cluster to stop, and wait until they have.

kubectl -n clara exec HEAD -c ray-head -- python /app/jobs/stop.py
"""

from __future__ import annotations

import argparse
import sys

from clara_dist.distributed.submit import stop_all
from clara_dist.errors import ClaraError

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", nargs="?", help="http://HOST:8265; left out: this machine's Ray")
    parser.add_argument(
        "--evicted",
        action="store_true",
        help="run in a head that is taken away: jobs end as FAILED (143), which KubeRay retries, not as STOPPED",
    )
    options = parser.parse_args()
    try:
        stop_all(options.address, is_eviction=options.evicted)
    except ClaraError as error:
        sys.exit(f"error: {error}")
