"""SIGINT and SIGTERM: the present step is finished, a checkpoint is written, and the process ends with its own code.

A first signal is noted. Within :func:`held` (the steps of a task's training, a pool's loop) it waits until
:func:`check` is called; elsewhere (loading, Fisher information, evaluation) nothing is in memory that is worth a wait,
and :class:`Interrupted` is raised at once: files are written under temporary names, so that none is torn by it. A
second signal has its usual effect.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 75
"""What a command that was interrupted ends with: EX_TEMPFAIL of sysexits.h, "try again later"."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop, and can be resumed; not an Exception, so that nothing takes it for a failure."""

    def __str__(self) -> str:
        name = self.args[0] if self.args else "a signal"
        return f"interrupted by {name}; finished rows and the last checkpoint are stored"


class _State:
    requested: str | None = None
    holding: int = 0
    worker: bool = False
    running: bool = False


_state = _State()


def requested() -> str | None:
    """The signal that asked to stop, or ``None``."""
    return _state.requested


def request(name: str) -> None:
    """Note that ``name`` asked to stop, as if its signal had come to this process."""
    _state.requested = _state.requested or name


def check() -> None:
    """Raise Interrupted if a signal asked to stop."""
    if _state.requested is not None:
        raise Interrupted(_state.requested)


@contextmanager
def noted() -> Iterator[None]:
    """Within, a signal is only noted."""
    _state.holding += 1
    try:
        yield
    finally:
        _state.holding -= 1


@contextmanager
def held() -> Iterator[None]:
    """Within, a signal is only noted; at the end it is raised, unless something else is."""
    with noted():
        yield
    if not _state.holding:
        check()


@contextmanager
def released() -> Iterator[None]:
    """A run, in a worker that else only notes signals: within, they have the effect that they have elsewhere."""
    holding, _state.holding, _state.running = _state.holding, 0, True
    try:
        check()
        yield
    finally:
        _state.holding, _state.running = holding, False


@contextmanager
def graceful() -> Iterator[None]:
    """Handle both signals within; where this is no main thread, or another handles them already, nothing changes."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is _handle:
        yield
        return
    before = {number: signal.signal(number, _handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        _state.requested = None


def begin_worker() -> None:
    """Handle both signals for this process's life: in a run, no second one kills.

    Between two runs the first is noted, and the next run tells the launcher of it; a second one ends the process, which
    may wait for a run that will never come.
    """
    _state.worker, _state.holding = True, 1
    for number in SIGNALS:
        signal.signal(number, _handle)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextmanager
def blocked() -> Iterator[None]:
    """Within, both signals wait; a process begun within has them wait until :func:`begin_worker`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _handle(number: int, frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    if _state.requested is not None:
        if not _state.worker:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not _state.running:  # nothing is in memory that is not stored
            os._exit(EXIT_CODE)
        return
    _state.requested = name
    if not _state.worker:
        os.write(
            2, f"{name}: finishing the step, and saving where the method can; a second signal stops at once\n".encode()
        )
    if not _state.holding:
        raise Interrupted(name)
