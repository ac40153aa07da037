"""What the fuzzing tests share: how often, what counts as a clean answer, and values that break things.

``FUZZ=10 pytest tests/robustness`` tries ten times as many cases, others each time.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from forgetting.cli import main
from forgetting.errors import UsageError

FACTOR = int(os.environ.get("FUZZ", "1"))
PATIENCE = 10
"""Seconds of CPU after which a case counts as one that hangs."""
CASES: dict[str, int] = {}
"""Cases of every fuzzing test, by its name."""


def fuzz(cases: int, **strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[[], None]]:
    """Make a test of ``cases`` generated cases, the same ones each time, that checks that so many were tried."""

    def decorate(check: Callable[..., None]) -> Callable[[], None]:
        tried = 0

        def counted(**values: Any) -> None:
            nonlocal tried
            tried += 1
            with no_longer_than(PATIENCE):
                check(**values)

        counted.__name__ = counted.__qualname__ = check.__name__
        CASES[check.__name__] = cases
        run = settings(
            max_examples=cases * FACTOR,
            deadline=None,
            derandomize=FACTOR == 1,
            database=None,
            phases=[Phase.generate],  # a case is small as it is
            suppress_health_check=list(HealthCheck),
        )(given(**strategies)(counted))

        def test() -> None:
            run()
            assert tried >= cases

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test

    return decorate


@contextlib.contextmanager
def no_longer_than(seconds: int) -> Iterator[None]:
    """Fail what does not end."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"did not end within {seconds} seconds of CPU")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def clean(call: Callable[[], Any], error: type[Exception] = UsageError) -> Any:
    """Return what a call returns, or ``None`` where it raised the error that a user reads: one line, not a long one."""
    try:
        return call()
    except error as problem:
        line = str(problem)
        assert line and "\n" not in line and "\r" not in line and len(line) < 3000, line[:500]
        return None


def command(*arguments: str) -> tuple[int, str]:
    """Run the command line in this process; return its exit code and what it wrote to stderr."""
    err, given = io.StringIO(), sys.argv
    sys.argv = ["forgetting", *arguments]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        assert "Traceback" not in err.getvalue()
        if code == 2 and err.getvalue().startswith("error: "):
            assert err.getvalue().count("\n") == 1, err.getvalue()
        return code, err.getvalue()
    finally:
        sys.argv = given
    raise AssertionError("the command did not exit")


def files(folder: Path) -> set[Path]:
    """Everything in a folder."""
    return set(folder.rglob("*"))


NASTY = st.sampled_from(
    [
        None, True, False, 0, -1, 1, 2**31, 2**64, -(2**70), 10**400, 0.0, -0.5, 1e308, float("nan"), float("inf"),
        -float("inf"), "", " ", "\n", "\x00", "\x1b[31m", "a\nb", "\ud800", "é", "😀", "~nobody/x", "~", "/", "..",
        "../../etc/passwd", "/dev/null", "/proc/self/mem", "a" * 300, "1e999", "nan", "{}", "{x", "{x.__class__}",
        "%s", "<script>alert(1)</script>", "!!python/object:os.system", [], {}, [[]], [None], [1, "a"], {"a": {}},
        {"": ""}, [[[[[[]]]]]],
    ]
)  # fmt: skip
"""Values that a person, another program or a broken disk may leave where something else belongs."""

VALUES = st.recursive(
    NASTY | st.text(max_size=8) | st.integers() | st.floats() | st.booleans(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=6,
)


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A nested value with up to three places changed: another value, a key gone, a key too many."""
    for _ in range(draw(st.integers(0, 3))):
        value = _changed_once(draw, value)
    return value


def _changed_once(draw: st.DrawFn, value: Any) -> Any:
    if isinstance(value, dict) and value and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(value, key=str)))
        rest = {other: inner for other, inner in value.items() if other != key}
        what = draw(st.integers(0, 9))
        if what == 0:
            return rest
        if what == 1:
            return {**value, draw(st.text(max_size=6)): draw(VALUES)}
        return {**value, key: _changed_once(draw, value[key])}
    if isinstance(value, list) and value and draw(st.integers(0, 4)):
        i = draw(st.integers(0, len(value) - 1))
        return [*value[:i], *([] if draw(st.integers(0, 4)) == 0 else [_changed_once(draw, value[i])]), *value[i + 1 :]]
    return draw(VALUES)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """A file's bytes cut short, with bytes flipped, or with some put in."""
    damage = draw(st.integers(0, 3))
    if damage == 0:
        return content[: draw(st.integers(0, len(content)))]
    if damage == 1:
        return draw(st.binary(max_size=40))
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(changed) - 1, 0)))
        if damage == 2:
            changed[at] = draw(st.integers(0, 255))
        else:
            changed[at:at] = draw(st.binary(max_size=6))
    return bytes(changed)
