"""Signals request a stop, which ends at once only what may be discarded."""

from __future__ import annotations

import os
import signal

import pytest

from omniges.errors import ExitCode
from omniges.trainer.distributed import SECOND_CTRL_C_AFTER_S, StopNow, Stopper


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, ExitCode.STOPPED), (signal.SIGUSR1, ExitCode.STOPPED), (signal.SIGINT, ExitCode.INTERRUPTED)],
)
class TestOneSignal:
    def test_is_a_flag_where_nothing_may_be_thrown_away(self, number: signal.Signals, code: ExitCode) -> None:
        with Stopper() as stopper:
            assert stopper.exit_code is None
            with stopper.interruptible(False):
                send(number)
            send(number)
            assert stopper.exit_code is code

    def test_ends_an_interruptible_stretch_and_every_later_one(self, number: signal.Signals, code: ExitCode) -> None:
        reached = []
        with Stopper() as stopper:
            with pytest.raises(StopNow), stopper.interruptible():
                send(number)
                reached.append("behind the signal")
            with pytest.raises(StopNow), stopper.interruptible():
                reached.append("in the next stretch")
            assert stopper.exit_code is code
        assert reached == []


def test_ctrl_c_outdoes_a_termination_whichever_is_first() -> None:
    for numbers in ((signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)):
        with Stopper() as stopper:
            for number in numbers:
                send(number)
            assert stopper.exit_code is ExitCode.INTERRUPTED


def test_a_second_ctrl_c_leaves_at_once_but_an_echo_of_the_first_does_not() -> None:
    now = [0.0]
    left = []

    def leave(number: int, _frame: object) -> None:
        left.append(number)
        raise SystemExit(130)

    before = signal.signal(signal.SIGINT, leave)
    try:
        with Stopper(clock=lambda: now[0]) as stopper:
            send(signal.SIGINT)
            now[0] += SECOND_CTRL_C_AFTER_S / 2
            send(signal.SIGINT)  # the launcher passes on what the terminal had sent already
            assert left == []
            now[0] += SECOND_CTRL_C_AFTER_S
            with pytest.raises(SystemExit):
                send(signal.SIGINT)
            assert stopper.exit_code is ExitCode.INTERRUPTED
        assert left == [signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) is leave
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_second_termination_changes_nothing() -> None:
    with Stopper() as stopper:
        for _ in range(3):
            send(signal.SIGTERM)
        assert stopper.exit_code is ExitCode.STOPPED


def test_handlers_are_put_back_even_after_an_error() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    with pytest.raises(ValueError, match="x"), Stopper():
        raise ValueError("x")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == before


def test_no_library_that_catches_exceptions_catches_the_wish() -> None:
    assert not issubclass(StopNow, Exception)
