from __future__ import annotations

import threading

import pytest

from clara_dist.training.background import BackgroundWriter


def test_work_goes_on_beside_and_is_waited_for_before_the_next() -> None:
    may_end, order = threading.Event(), []

    def first() -> str:
        may_end.wait(60)
        order.append("first")
        return "one"

    with BackgroundWriter() as writer:
        assert writer.submit(first) is None
        assert (writer.busy, writer.poll()) == (True, None)
        may_end.set()
        assert writer.submit(lambda: order.append("second")) == "one"
        assert writer.join() is None
        assert not writer.busy
    assert order == ["first", "second"]


def test_what_goes_wrong_ends_the_block_or_the_next_call() -> None:
    def fails() -> None:
        raise OSError("no space")

    def unheard(writer: BackgroundWriter) -> None:
        with writer:
            writer.submit(fails)

    with pytest.raises(OSError, match="no space"):
        unheard(BackgroundWriter())
    writer = BackgroundWriter()
    writer.submit(fails)
    with pytest.raises(OSError, match="no space"):
        writer.submit(lambda: pytest.fail("it must not get here"))


def test_an_error_of_the_run_goes_first_and_the_work_is_still_done() -> None:
    done = []

    def interrupted(writer: BackgroundWriter) -> None:
        with writer:
            writer.submit(lambda: done.append("checkpoint"))
            raise KeyError("of the run")

    with pytest.raises(KeyError, match="of the run"):
        interrupted(BackgroundWriter())
    assert done == ["checkpoint"]
