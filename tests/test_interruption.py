"""SIGINT and SIGTERM: noted within a step, raised elsewhere, and a second one stops at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from forgetting import interruption
from forgetting.interruption import EXIT_CODE, Interrupted, check, graceful, held, requested

BOTH = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is noted or held, whatever ran before in this process; a signal that nothing handles fails the test."""

    def unhandled(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"{signal.Signals(number).name} was handled by nothing")

    monkeypatch.setattr(interruption, "_state", interruption._State())
    before = {number: signal.signal(number, unhandled) for number in BOTH}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", BOTH)
def test_within_a_step_it_waits_for_the_steps_end(number: signal.Signals) -> None:
    done = []
    with pytest.raises(Interrupted, match=number.name), graceful(), held():
        signal.raise_signal(number)
        done.append("the rest of the step")
        assert requested() == number.name
    assert done and requested() is None
    check()


@pytest.mark.parametrize("number", BOTH)
def test_elsewhere_it_is_raised_at_once(number: signal.Signals) -> None:
    done = []
    with pytest.raises(Interrupted, match=number.name), graceful():
        signal.raise_signal(number)
        done.append("never")
    assert not done


def test_it_is_no_exception_that_a_run_takes_for_its_failure() -> None:
    assert not issubclass(Interrupted, Exception) and issubclass(Interrupted, KeyboardInterrupt)


def test_an_error_within_a_step_is_not_hidden_by_a_signal() -> None:
    with pytest.raises(ValueError, match="the step"), graceful(), held():
        signal.raise_signal(signal.SIGTERM)
        raise ValueError("the step")


def test_handlers_are_as_before_afterwards_and_in_other_threads_untouched() -> None:
    before = [signal.getsignal(number) for number in BOTH]
    with graceful():
        inner = [signal.getsignal(number) for number in BOTH]
        with graceful():
            assert [signal.getsignal(number) for number in BOTH] == inner != before
        assert [signal.getsignal(number) for number in BOTH] == inner
    assert [signal.getsignal(number) for number in BOTH] == before
    errors: list[BaseException] = []

    def elsewhere() -> None:
        try:
            with graceful():
                pass
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert not errors


_SCRIPT = """
import os, signal, sys
from forgetting import interruption
number = getattr(signal, sys.argv[1])
try:
    with interruption.graceful(), interruption.held():
        for _ in range(int(sys.argv[2])):
            os.kill(os.getpid(), number)
except interruption.Interrupted:
    sys.exit(interruption.EXIT_CODE)
"""


@pytest.mark.parametrize("number", BOTH)
def test_a_second_signal_stops_at_once(number: signal.Signals) -> None:
    codes = []
    for times in (1, 2):
        command = [sys.executable, "-c", _SCRIPT, number.name, str(times)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (
            done.stderr
            == f"{number.name}: finishing the step, and saving where the method can; a second signal stops at once\n"
        )
        codes.append(done.returncode)
    assert codes == [EXIT_CODE, -number] == [75, -number]


_WORKER = """
import os, signal, sys
from forgetting import interruption
with interruption.blocked():
    os.kill(os.getpid(), signal.SIGTERM)
    assert interruption.requested() is None
    interruption.begin_worker()
    assert interruption.requested() == "SIGTERM"
if sys.argv[1] == "waits":
    os.kill(os.getpid(), signal.SIGTERM)
    sys.exit("it went on waiting")
try:
    with interruption.released():
        sys.exit("a run was begun")
except interruption.Interrupted:
    print("told")
interruption._state.requested = None
try:
    with interruption.released(), interruption.held():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        print("the rest of the step")
except interruption.Interrupted:
    print("told")
"""


@pytest.mark.parametrize(
    ("doing", "code", "output"), [("waits", EXIT_CODE, ""), ("runs", 0, "told\nthe rest of the step\ntold\n")]
)
def test_a_worker_ends_at_a_second_signal_between_two_runs_and_never_within_a_step(
    doing: str, code: int, output: str
) -> None:
    """The first is noted, and the next run tells of it: it is not begun."""
    done = subprocess.run([sys.executable, "-c", _WORKER, doing], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, output, "")
