"""The errors a user can cause: one line that names the field, the value, and what would be valid."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ForgettingError(Exception):
    """Base of every error that the package raises on purpose; the command line prints its one line."""


class UsageError(ForgettingError, ValueError):
    """Input that cannot be used. The command line prints it and exits with code 2.

    Its message is one line: the field, the value given, and what would be valid.
    """


class RunFailed(ForgettingError, RuntimeError):
    """A run that cannot go on (a NaN loss, say); recorded as status ``failed``, the study continues."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known name, or ``"; known: a, b"`` where none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(name if name.isprintable() else repr(name) for name in names)}" if names else ""
