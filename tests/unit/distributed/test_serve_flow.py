from __future__ import annotations

from contextlib import ExitStack

import pytest

from clara_dist.distributed.serve_flow import Flow


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def end_one_every(flow: Flow, clock: Clock, seconds: float, n: int) -> None:
    for _ in range(n):
        with flow.request():
            clock.now += seconds


def test_what_is_under_way_at_the_pace_of_what_ended(clock: Clock) -> None:
    flow = Flow(clock)
    end_one_every(flow, clock, 0.5, 11)
    with ExitStack() as under_way:
        for _ in range(7):
            under_way.enter_context(flow.request())
        assert flow.retry_after_s() == 4  # 7 * 0.5 s, rounded up
        clock.now += 5  # nothing has ended since: 10 ends in 10 s
        assert flow.retry_after_s() == 7
    assert flow.retry_after_s() == 1


def test_without_a_pace_it_is_a_second(clock: Clock) -> None:
    flow = Flow(clock)
    with flow.request():
        assert flow.retry_after_s() == 1
    with flow.request():
        assert flow.retry_after_s() == 1
    end_one_every(flow, clock, 1, 5)
    clock.now += 61  # what ended before the last minute is no pace
    with flow.request():
        assert flow.retry_after_s() == 1


def test_it_is_bounded_and_what_fails_is_no_pace(clock: Clock) -> None:
    flow = Flow(clock)
    end_one_every(flow, clock, 20, 3)
    with flow.request(), flow.request():
        assert flow.retry_after_s() == 30  # not 40
    for _ in range(50):
        with pytest.raises(ValueError, match="refused"), flow.request():
            raise ValueError("refused")
    with flow.request():
        assert flow.retry_after_s() == 10  # the two above have ended as well: four ends in 40 s
