"""A job that is asked to stop: its exit code, its line, and the handlers it found."""

from __future__ import annotations

import signal
import threading

import pytest

from clara_dist.distributed.stopping import stoppable


def test_sigterm_ends_the_process_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    released = []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            released.append(signal.getsignal(signal.SIGTERM))

    with pytest.raises(SystemExit) as stopped, stoppable("go on with X"):
        work()
    assert stopped.value.code == 143
    assert capsys.readouterr().err == "go on with X\n"
    assert released == [signal.SIG_DFL], "a second one kills at once"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_stop_that_is_put_off_ends_the_process_with_the_block(capsys: pytest.CaptureFixture[str]) -> None:
    finished = []

    def work() -> None:
        with stoppable("go on with X") as stop:
            with stop.deferred():
                assert not stop.is_asked
                signal.raise_signal(signal.SIGTERM)
                assert stop.is_asked
                assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "a second one kills at once"
                finished.append(1)
            finished.append(2)

    with pytest.raises(SystemExit) as stopped:
        work()
    assert stopped.value.code == 143
    assert finished == [1]
    assert capsys.readouterr().err == "asked to stop: finishing what is under way\ngo on with X\n"


def test_nobody_ends_who_was_not_asked() -> None:
    with stoppable("go on with X") as stop, stop.deferred():
        pass


def test_ctrl_c_stays_a_keyboard_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    # Python leaves the signal ignored where a shell started it in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), stoppable("go on with X"):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "go on with X\n"


def test_errors_and_success_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with stoppable("go on with X"):
        pass
    with pytest.raises(ValueError, match="mine"), stoppable("go on with X"):
        raise ValueError("mine")
    assert capsys.readouterr().err == ""


def test_a_thread_that_may_set_no_handlers_runs_all_the_same() -> None:
    ran = []

    def work() -> None:
        with stoppable("go on with X"):
            ran.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ran == [True]
