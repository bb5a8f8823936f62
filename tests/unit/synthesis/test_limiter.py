from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from clara_dist.synthesis import Limiter
from fake_time import FakeTime


def admitted_at(limiter: Limiter, time: FakeTime, tokens: Sequence[float], true: float | None = None) -> list[float]:
    """When each of these requests is sent, one after the other; an answered one took ``true`` tokens."""
    times = []

    async def send_all() -> None:
        for each in tokens:
            async with limiter.admitted(each) as ticket:
                times.append(time.now)
                time.now += 1.0
                if true is not None:
                    ticket.settle(true)

    asyncio.run(send_all())
    return times


def most_in_a_minute(times: Sequence[float], weights: Sequence[float]) -> float:
    return max(sum(w for t, w in zip(times, weights, strict=True) if start <= t < start + 60 - 1e-6) for start in times)


def test_no_minute_has_more_requests_than_allowed() -> None:
    time = FakeTime()
    times = admitted_at(Limiter(4, requests_per_minute=10, timing=time.timing), time, [1] * 25)
    assert most_in_a_minute(times, [1] * 25) == 10
    assert times[:10] == list(range(10))
    # No slower than it must be: a place is free again 60 s after it was taken.
    assert times[10:20] == pytest.approx([60 + i for i in range(10)])
    assert times[20] == pytest.approx(120)


def test_a_rest_earns_no_second_burst() -> None:
    time = FakeTime()
    limiter = Limiter(4, requests_per_minute=10, timing=time.timing)
    admitted_at(limiter, time, [1] * 3)
    time.now += 50
    times = admitted_at(limiter, time, [1] * 20)
    assert most_in_a_minute(times, [1] * 20) == 10


def test_no_minute_has_more_tokens_than_allowed() -> None:
    time = FakeTime()
    weights = [40, 30, 40, 5, 100, 60, 50]
    times = admitted_at(Limiter(4, tokens_per_minute=100, timing=time.timing), time, weights)
    assert most_in_a_minute(times, weights) <= 100
    assert times == pytest.approx([0, 1, 60, 61, 121, 181, 241])


def test_what_a_request_really_took_makes_room() -> None:
    time = FakeTime()
    times = admitted_at(Limiter(4, tokens_per_minute=100, timing=time.timing), time, [60] * 6, true=10)
    # 4 * 10 + 60 fit, 5 * 10 + 60 do not.
    assert times == pytest.approx([0, 1, 2, 3, 4, 60])


def test_a_request_above_the_limit_is_sent_alone() -> None:
    time = FakeTime()
    times = admitted_at(Limiter(4, tokens_per_minute=100, timing=time.timing), time, [10, 500, 10])
    assert times == pytest.approx([0, 60, 120])


def test_a_pause_holds_everybody_and_the_longest_counts() -> None:
    time = FakeTime()
    limiter = Limiter(4, timing=time.timing)
    limiter.pause(30)
    limiter.pause(7)
    assert admitted_at(limiter, time, [1, 1]) == [30, 31]


def test_no_more_are_under_way_than_allowed() -> None:
    under_way: list[int] = []

    async def main() -> None:
        limiter, now, done = Limiter(3), 0, 0

        async def send() -> None:
            nonlocal now, done
            async with limiter.admitted(1):
                now += 1
                under_way.append(now)
                await asyncio.sleep(0)
                now -= 1
                done += 1

        await asyncio.gather(*(send() for _ in range(20)))
        assert done == 20

    asyncio.run(main())
    assert max(under_way) == 3


def test_who_fails_or_is_cancelled_gives_the_place_back() -> None:
    async def main() -> None:
        limiter = Limiter(1)
        with pytest.raises(ValueError, match="boom"):
            async with limiter.admitted(1):
                raise ValueError("boom")
        limiter.pause(1000)
        waiting = asyncio.create_task(limiter.admitted(1).__aenter__())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        limiter._paused_until = 0.0
        async with limiter.admitted(1):
            pass

    asyncio.run(asyncio.wait_for(main(), 10))
