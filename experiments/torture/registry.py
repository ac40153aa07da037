"""The faults that ``make torture`` causes.

A fault is a function here or in any module of this folder::

    @fault("disk full", "the disk fills while a checkpoint is written; room is made, and the study is resumed")
    def disk_full(folder: Path) -> bool:
        ...cause it, go on, compare...
        return survived

It is called again and again with an empty folder, in a process that has imported the package and has never run a
backward pass (so that it may fork), and returns whether the study survived. Where one call causes several faults, it
returns an :class:`Outcome`. An exception is a fault that was not survived; its one line is kept with the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules


@dataclass(frozen=True)
class Outcome:
    """How often a fault was survived, of how many times that it was caused; ``note`` says what went wrong."""

    survived: int
    tried: int
    note: str = ""


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes:
        name: As the table has it.
        does: What is caused, in one line.
        cause: Causes it in an empty folder, and says whether it was survived.
        once: Whether one call is enough, because nothing in it is drawn at random.
    """

    name: str
    does: str
    cause: Callable[[Path], bool | Outcome]
    once: bool = False


FAULTS: dict[str, Fault] = {}


def fault(name: str, does: str, *, once: bool = False) -> Callable[[Callable[[Path], bool | Outcome]], Callable]:
    """Register a function that causes a fault."""

    def register(cause: Callable[[Path], bool | Outcome]) -> Callable[[Path], bool | Outcome]:
        if name in FAULTS:
            raise ValueError(f"fault {name!r}: is registered twice")
        FAULTS[name] = Fault(name, does, cause, once)
        return cause

    return register


def all_faults() -> dict[str, Fault]:
    """Import every module of this folder, and return what they registered."""
    for module in iter_modules([str(Path(__file__).parent)]):
        if not module.name.startswith("_"):
            import_module(f"experiments.torture.{module.name}")
    return FAULTS
