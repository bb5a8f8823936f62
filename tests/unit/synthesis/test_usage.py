from __future__ import annotations

import json

from clara_dist.synthesis import Meter, Usage


def test_usage_adds_field_by_field_and_survives_json() -> None:
    one = Usage(*range(1, 12))
    assert one + one == Usage(*range(2, 24, 2))
    assert Usage() + one == one
    assert Usage.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    assert set(one.to_dict()) >= {"requests", "prompt_tokens", "completion_tokens", "malformed", "without_usage"}


def test_what_did_not_fail_was_answered() -> None:
    usage = Usage(
        requests=20, rate_limited=1, timeouts=2, connection_errors=3, server_errors=4, refused=5, retries=9, malformed=2
    )
    assert usage.answered == 5


def test_a_meter_adds_up() -> None:
    meter = Meter()
    for n in (1, 2, 3):
        meter.add(Usage(requests=n, prompt_tokens=10 * n))
    assert meter.usage == Usage(requests=6, prompt_tokens=60)
