"""Ask every job of this cluster to stop, and wait until they have; what a head does before it is taken away.

kubectl -n clara exec HEAD -c ray-head -- python /app/jobs/stop.py
"""

from __future__ import annotations

import sys

from clara_dist.distributed.submit import stop_all
from clara_dist.errors import ClaraError

if __name__ == "__main__":
    try:
        stop_all(*sys.argv[1:2])
    except ClaraError as error:
        sys.exit(f"error: {error}")
